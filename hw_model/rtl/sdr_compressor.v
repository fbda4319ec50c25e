// Razors 16 integers of 16 bits into SDR codes of 4: magnitudes, OR tree, leading one, shift, round half up, saturate.
module sdr_compressor (
    input clk,
    input [255:0] x,                         // 16 two's complement integers
    output reg [63:0] codes,                 // {sign, magnitude}
    output reg [3:0] flag                    // dropped bits, 0..12
);
    integer i, b;
    reg [14:0] ored;
    reg [239:0] magnitudes;
    reg [3:0] drop;
    reg [15:0] moved;                        // three kept bits and the guard bit are its lowest four
    reg [63:0] next;
    always @* begin
        ored = 0;
        for (i = 0; i < 16; i = i + 1) begin
            magnitudes[15*i +: 15] = x[16*i+15] ? -x[16*i +: 15] : x[16*i +: 15];
            ored = ored | magnitudes[15*i +: 15];
        end
        drop = 0;
        for (b = 3; b < 15; b = b + 1) if (ored[b]) drop = b - 2;
        for (i = 0; i < 16; i = i + 1) begin
            moved = {magnitudes[15*i +: 15], 1'b0} >> drop;
            next[4*i +: 3] = (moved[3:1] == 3'd7) ? 3'd7 : moved[3:1] + {2'b00, moved[0]};
            next[4*i+3] = x[16*i+15];
        end
    end
    always @(posedge clk) begin
        codes <= next;
        flag <= drop;
    end
endmodule

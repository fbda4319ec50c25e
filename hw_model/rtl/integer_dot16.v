// Baselines: sixteen integer products a cycle.
module dot16_8x16 (
    input clk, input clear, input [127:0] w, input [255:0] a, output reg signed [39:0] acc
);
    integer i;
    reg signed [27:0] sum;
    always @* begin
        sum = 0;
        for (i = 0; i < 16; i = i + 1) sum = sum + $signed(w[8*i +: 8]) * $signed(a[16*i +: 16]);
    end
    wire signed [39:0] base = clear ? 40'd0 : acc;
    always @(posedge clk) acc <= base + {{12{sum[27]}}, sum};
endmodule

module dot16_8x8 (
    input clk, input clear, input [127:0] w, input [127:0] a, output reg signed [31:0] acc
);
    integer i;
    reg signed [19:0] sum;
    always @* begin
        sum = 0;
        for (i = 0; i < 16; i = i + 1) sum = sum + $signed(w[8*i +: 8]) * $signed(a[8*i +: 8]);
    end
    wire signed [31:0] base = clear ? 32'd0 : acc;
    always @(posedge clk) acc <= base + {{12{sum[19]}}, sum};
endmodule

// The same SDR codes as sdr_dot16, first expanded to the 8- and 16-bit integers they stand for.
module dot16_decompress (
    input clk, input clear, input [63:0] w, input [63:0] a, input [2:0] flag_w, input [3:0] flag_a,
    output reg signed [39:0] acc
);
    integer i;
    reg signed [27:0] sum;
    reg [7:0] wide_w;
    reg [15:0] wide_a;
    reg signed [7:0] signed_w;
    reg signed [15:0] signed_a;
    always @* begin
        sum = 0;
        for (i = 0; i < 16; i = i + 1) begin
            wide_w = {5'd0, w[4*i +: 3]} << flag_w;
            wide_a = {13'd0, a[4*i +: 3]} << flag_a;
            signed_w = w[4*i+3] ? -wide_w : wide_w;
            signed_a = a[4*i+3] ? -wide_a : wide_a;
            sum = sum + signed_w * signed_a;
        end
    end
    wire signed [39:0] base = clear ? 40'd0 : acc;
    always @(posedge clk) acc <= base + {{12{sum[27]}}, sum};
endmodule

// Sixteen SDR products a cycle: codes are multiplied and added as they are, one shifter behind the adder tree moves the
// sum of the group by both flags. acc <= (clear ? 0 : acc) + ((sum_i w_i * a_i) << (flag_w + flag_a)).
module sdr_dot16 (
    input clk, input clear,
    input [63:0] w, input [63:0] a,          // 16 codes {sign, magnitude}
    input [2:0] flag_w, input [3:0] flag_a,
    output reg signed [39:0] acc
);
    integer i;
    reg signed [10:0] sum;                   // at most 16 * 49 = 784
    reg [5:0] magnitude;
    always @* begin
        sum = 0;
        for (i = 0; i < 16; i = i + 1) begin
            magnitude = w[4*i +: 3] * a[4*i +: 3];
            sum = sum + ((w[4*i+3] ^ a[4*i+3]) ? -$signed({5'd0, magnitude}) : $signed({5'd0, magnitude}));
        end
    end
    wire [4:0] shift = flag_w + flag_a;
    wire signed [26:0] shifted = {{16{sum[10]}}, sum} << shift;
    wire signed [39:0] base = clear ? 40'd0 : acc;
    always @(posedge clk) acc <= base + {{13{shifted[26]}}, shifted};
endmodule

// Sixteen INT4 products a cycle; rows have one scale each, which multiplies a finished sum outside.
module dot16_4x4 (input clk, input clear, input [63:0] w, input [63:0] a, output reg [31:0] acc);
    wire [11:0] sum;
    signed_sum #(.M(4), .N(4), .WIDE(12)) products (.w(w), .a(a), .sum(sum));
    always @(posedge clk) acc <= (clear ? 32'd0 : acc) + {{20{sum[11]}}, sum};
endmodule

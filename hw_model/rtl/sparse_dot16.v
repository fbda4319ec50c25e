// Sixteen INT8 products a cycle with weights of which two in four are kept: each chooses its input by a two-bit place.
module sparse_dot16 (
    input clk, input clear, input [127:0] w, input [255:0] a, input [31:0] place, output reg [31:0] acc
);
    integer i;
    reg [127:0] chosen;
    always @* for (i = 0; i < 16; i = i + 1) chosen[8*i +: 8] = a[8*(4*(i/2) + place[2*i +: 2]) +: 8];
    wire [19:0] sum;
    signed_sum #(.M(8), .N(8), .WIDE(20)) products (.w(w), .a(chosen), .sum(sum));
    always @(posedge clk) acc <= (clear ? 32'd0 : acc) + {{12{sum[19]}}, sum};
endmodule

// Baselines: sixteen integer products a cycle.
module dot16_8x16 (input clk, input clear, input [127:0] w, input [255:0] a, output reg [39:0] acc);
    wire [27:0] sum;
    signed_sum #(.M(8), .N(16), .WIDE(28)) products (.w(w), .a(a), .sum(sum));
    always @(posedge clk) acc <= (clear ? 40'd0 : acc) + {{12{sum[27]}}, sum};
endmodule

module dot16_8x8 (input clk, input clear, input [127:0] w, input [127:0] a, output reg [31:0] acc);
    wire [19:0] sum;
    signed_sum #(.M(8), .N(8), .WIDE(20)) products (.w(w), .a(a), .sum(sum));
    always @(posedge clk) acc <= (clear ? 32'd0 : acc) + {{12{sum[19]}}, sum};
endmodule

// The same SDR codes as sdr_dot16, first expanded to the 8- and 16-bit integers they stand for.
module dot16_decompress (
    input clk, input clear, input [63:0] w, input [63:0] a, input [2:0] flag_w, input [3:0] flag_a,
    output reg [39:0] acc
);
    integer i;
    reg [7:0] size_w;
    reg [15:0] size_a;
    reg [127:0] wide_w;
    reg [255:0] wide_a;
    always @* for (i = 0; i < 16; i = i + 1) begin
        size_w = {5'd0, w[4*i +: 3]} << flag_w;
        size_a = {13'd0, a[4*i +: 3]} << flag_a;
        wide_w[8*i +: 8] = w[4*i+3] ? -size_w : size_w;
        wide_a[16*i +: 16] = a[4*i+3] ? -size_a : size_a;
    end
    wire [27:0] sum;
    signed_sum #(.M(8), .N(16), .WIDE(28)) products (.w(wide_w), .a(wide_a), .sum(sum));
    always @(posedge clk) acc <= (clear ? 40'd0 : acc) + {{12{sum[27]}}, sum};
endmodule

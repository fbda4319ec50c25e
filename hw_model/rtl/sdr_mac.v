// Serial multiply-accumulate on SDR codes (QRazor, arXiv 2501.13331): sign and 3 magnitude bits, one product a cycle,
// shifted by both flags into a 40-bit sum. acc <= (clear ? 0 : acc) + ((w * a) << (flag_w + flag_a)).
module sdr_mac (
    input clk, input clear,
    input [3:0] w, input [3:0] a,            // {sign, magnitude}
    input [2:0] flag_w, input [3:0] flag_a,  // dropped bits: 0..4 and 0..12
    output reg signed [39:0] acc
);
    wire [5:0] magnitude = w[2:0] * a[2:0];
    wire signed [6:0] product = (w[3] ^ a[3]) ? -{1'b0, magnitude} : {1'b0, magnitude};
    wire [4:0] shift = flag_w + flag_a;
    wire signed [22:0] shifted = {{16{product[6]}}, product} << shift;
    wire signed [39:0] base = clear ? 40'd0 : acc;
    always @(posedge clk) acc <= base + {{17{shifted[22]}}, shifted};
endmodule

// Sixteen products of MXFP4 codes (OCP Microscaling v1.0: E2M1, a power of two for 32 neighbours) a cycle. Products are
// whole quarters and add up exactly; their sum with both exponents is a float32, which is added to a float32 sum.
module mxfp4_dot16 (
    input clk, input clear,
    input [63:0] w, input [63:0] a,          // 16 codes {sign, exponent, exponent, mantissa}
    input [7:0] scale_w, input [7:0] scale_a,  // exponents plus 127, such that the sum is a normal number
    output reg [31:0] sum                    // float32
);
    integer i, b;
    reg [3:0] half_w, half_a;                // twice the magnitudes: 0, 1, 2, 3, 4, 6, 8, 12
    reg [7:0] magnitude;
    reg sign;
    reg [12:0] total;                        // products plus 256 each, so that all of them are positive
    always @* begin
        total = 0;
        for (i = 0; i < 16; i = i + 1) begin
            half_w = (w[4*i+1 +: 2] == 0) ? {3'd0, w[4*i]} : {2'b00, 1'b1, w[4*i]} << (w[4*i+1 +: 2] - 2'd1);
            half_a = (a[4*i+1 +: 2] == 0) ? {3'd0, a[4*i]} : {2'b00, 1'b1, a[4*i]} << (a[4*i+1 +: 2] - 2'd1);
            magnitude = half_w * half_a;
            sign = w[4*i+3] ^ a[4*i+3];
            total = total + {~sign, magnitude ^ {8{sign}}} + sign;
        end
    end
    wire [12:0] whole = total - 13'd4096;    // at most 16 * 144 = 2304 either way
    wire [11:0] size = whole[12] ? -whole[11:0] : whole[11:0];
    reg [3:0] top;                           // place of the leading one
    always @* begin
        top = 0;
        for (b = 0; b < 12; b = b + 1) if (size[b]) top = b;
    end
    wire [22:0] fraction = {11'd0, size} << (5'd23 - top);
    wire [9:0] exponent = {2'd0, scale_w} + {2'd0, scale_a} + {6'd0, top} - 10'd129;  // 127 - 2 * 127 - 2
    wire [31:0] term = (size == 0) ? 32'd0 : {whole[12], exponent[7:0], fraction};
    wire [31:0] next;
    fp32_add adder (.a(clear ? 32'd0 : sum), .b(term), .y(next));
    always @(posedge clk) sum <= next;
endmodule

// Baseline: INT4 with a float16 scale a group, the arithmetic of group-wise uniform quantization. Sixteen 4-bit products
// a cycle, their sum times the group's scale (exact in float32), added to a float32 sum.
module dot16_4_fp16 (
    input clk, input clear,
    input [63:0] w, input [63:0] a,          // 16 two's complement integers of 4 bits each
    input [15:0] scale,                      // float16, positive and normal
    output reg [31:0] acc                    // float32
);
    wire [11:0] sum;
    signed_sum #(.M(4), .N(4), .WIDE(12)) products (.w(w), .a(a), .sum(sum));
    wire [10:0] size = sum[11] ? -sum[10:0] : sum[10:0];
    wire [21:0] product = size * {1'b1, scale[9:0]};
    reg [4:0] top;                           // place of the leading one of the product
    integer b;
    always @* begin
        top = 0;
        for (b = 0; b < 22; b = b + 1) if (product[b]) top = b;
    end
    wire [22:0] fraction = {1'b0, product} << (5'd23 - top);
    wire [7:0] exponent = {3'd0, scale[14:10]} + {3'd0, top} + 8'd102;  // 127 - 15 - 10
    wire [31:0] term = (product == 0) ? 32'd0 : {sum[11], exponent, fraction};
    wire [31:0] total;
    fp32_add adder (.a(clear ? 32'd0 : acc), .b(term), .y(total));
    always @(posedge clk) acc <= total;
endmodule

// float32 addition, round half to even; zero and normal numbers only.
module fp32_add (input [31:0] a, input [31:0] b, output [31:0] y);
    wire swap = b[30:0] > a[30:0];
    wire [31:0] big = swap ? b : a;
    wire [31:0] little = swap ? a : b;
    wire [7:0] distance = big[30:23] - little[30:23];
    wire [26:0] big_part = {big[30:23] != 0, big[22:0], 3'b000};
    wire [26:0] little_part = {little[30:23] != 0, little[22:0], 3'b000};
    wire [4:0] limited = (distance > 26) ? 5'd27 : distance[4:0];
    wire [26:0] moved = little_part >> limited;
    wire sticky = |(little_part & ~(27'h7FFFFFF << limited));
    wire [26:0] aligned = {moved[26:1], moved[0] | sticky};
    wire subtract = big[31] ^ little[31];
    wire [27:0] sum = subtract ? {1'b0, big_part} - {1'b0, aligned} : {1'b0, big_part} + {1'b0, aligned};
    reg [4:0] top;
    integer i;
    always @* begin
        top = 0;
        for (i = 0; i < 28; i = i + 1) if (sum[i]) top = i;
    end
    wire carry = sum[27];
    wire [27:0] normal = carry ? {1'b0, sum[27:2], sum[1] | sum[0]} : sum << (5'd26 - top);
    wire [8:0] exponent = carry ? big[30:23] + 9'd1 : big[30:23] - (9'd26 - {4'd0, top});
    wire up = normal[2] & (normal[1] | normal[0] | normal[3]);
    wire [24:0] rounded = {1'b0, normal[26:3]} + {24'd0, up};
    wire [8:0] last = exponent + {8'd0, rounded[24]};
    assign y = (sum == 0) ? 32'd0 : {big[31], last[7:0], rounded[24] ? rounded[23:1] : rounded[22:0]};
endmodule

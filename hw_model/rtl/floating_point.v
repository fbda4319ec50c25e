// float32 as dequantize-quantize and softmax in floating point need it: multiplication, addition and division of normal
// numbers and zero, rounded half to even, and conversion from 32-bit and to 8-bit integers. Results stay normal numbers.
module float32_multiply (input [31:0] a, input [31:0] b, output [31:0] y);
    wire [47:0] product = {1'b1, a[22:0]} * {1'b1, b[22:0]};
    wire high = product[47];
    wire [46:0] normal = high ? product[46:0] : {product[45:0], 1'b0};   // behind the leading one
    wire up = normal[23] & (|normal[22:0] | normal[24]);
    wire [23:0] fraction = {1'b0, normal[46:24]} + {23'd0, up};
    wire [8:0] exponent = {1'b0, a[30:23]} + {1'b0, b[30:23]} - 9'd127 + {8'd0, high} + {8'd0, fraction[23]};
    assign y = (a[30:23] == 0 || b[30:23] == 0) ? 32'd0 : {a[31] ^ b[31], exponent[7:0], fraction[22:0]};
endmodule

module float32_from_integer (input [31:0] x, output [31:0] y);
    wire [31:0] size = x[31] ? -x : x;
    reg [4:0] top;
    integer i;
    always @* begin
        top = 0;
        for (i = 0; i < 32; i = i + 1) if (size[i]) top = i;
    end
    wire [31:0] normal = size << (5'd31 - top);
    wire up = normal[7] & (|normal[6:0] | normal[8]);
    wire [23:0] fraction = {1'b0, normal[30:8]} + {23'd0, up};
    wire [7:0] exponent = 8'd127 + {3'd0, top} + {7'd0, fraction[23]};
    assign y = (size == 0) ? 32'd0 : {x[31], exponent, fraction[22:0]};
endmodule

// Rounded half to even and saturated to -127..127.
module integer_from_float32 (input [31:0] x, output [7:0] y);
    wire below = x[30:23] < 8'd126;          // below one half
    wire above = x[30:23] > 8'd133;          // 128 and more
    wire [3:0] places = x[30:23] - 8'd126;   // 0..7 bits before the point
    wire [32:0] fixed = {8'd0, 1'b1, x[22:0], 1'b0} << places;   // the point stands behind bit 25
    wire up = fixed[24] & (|fixed[23:0] | fixed[25]);
    wire [7:0] size = fixed[32:25] + {7'd0, up};
    wire [6:0] limited = (above || size[7]) ? 7'd127 : size[6:0];
    assign y = below ? 8'd0 : x[31] ? -{1'b0, limited} : {1'b0, limited};
endmodule

// The units below have a register each: a lane is a pipeline of them, and its figures are the sum of theirs.
module fp32_from_integer (input clk, input [31:0] x, output reg [31:0] y);
    wire [31:0] found;
    float32_from_integer convert (.x(x), .y(found));
    always @(posedge clk) y <= found;
endmodule

module integer_from_fp32 (input clk, input [31:0] x, output reg [7:0] y);
    wire [7:0] found;
    integer_from_float32 convert (.x(x), .y(found));
    always @(posedge clk) y <= found;
endmodule

module fp32_mul (input clk, input [31:0] a, input [31:0] b, output reg [31:0] y);
    wire [31:0] found;
    float32_multiply multiply (.a(a), .b(b), .y(found));
    always @(posedge clk) y <= found;
endmodule

module fp32_sum (input clk, input [31:0] a, input [31:0] b, output reg [31:0] y);
    wire [31:0] found;
    fp32_add add (.a(a), .b(b), .y(found));
    always @(posedge clk) y <= found;
endmodule

// Restoring division, a quotient bit a step, all steps side by side: one quotient a cycle.
module fp32_div (input clk, input [31:0] a, input [31:0] b, output reg [31:0] y);
    wire [23:0] divisor = {1'b1, b[22:0]};
    integer i;
    reg [25:0] rest;
    reg [26:0] quotient;                     // 1..2 or 1/2..1 with 26 bits behind the point
    always @* begin
        rest = {2'd0, 1'b1, a[22:0]};
        quotient = 0;
        for (i = 26; i >= 0; i = i - 1) begin
            if (rest >= {2'd0, divisor}) begin
                rest = rest - {2'd0, divisor};
                quotient[i] = 1'b1;
            end
            rest = rest << 1;
        end
    end
    wire high = quotient[26];
    wire [25:0] normal = high ? quotient[25:0] : {quotient[24:0], 1'b0};  // behind the leading one
    wire up = normal[2] & (|normal[1:0] | (rest != 0) | normal[3]);
    wire [23:0] fraction = {1'b0, normal[25:3]} + {23'd0, up};
    wire [8:0] exponent = {1'b0, a[30:23]} - {1'b0, b[30:23]} + 9'd127 - {8'd0, ~high} + {8'd0, fraction[23]};
    always @(posedge clk) y <= (a[30:23] == 0) ? 32'd0 : {a[31] ^ b[31], exponent[7:0], fraction[22:0]};
endmodule

// One plane of 64 weights against one plane of 64 activations a cycle: a product of p and q bits takes p * q cycles.
// acc <= (clear ? 0 : acc) + (popcount(w & a) << shift), shift the sum of both planes' places (ABQ-LLM, arXiv 2408.08554);
// codes count from zero, what their zero points add is corrected outside.
module bitplane_and (
    input clk, input clear, input [63:0] w, input [63:0] a, input [3:0] shift, output reg [31:0] acc
);
    wire [6:0] count;
    popcount64 ones (.x(w & a), .count(count));
    wire [21:0] shifted = {15'd0, count} << shift;
    always @(posedge clk) acc <= (clear ? 32'd0 : acc) + {10'd0, shifted};
endmodule

// The same for bits that stand for +1 and -1 (arXiv 2409.17870): 2 popcount(xnor) - 64.
module bitplane_xnor (
    input clk, input clear, input [63:0] w, input [63:0] a, input [3:0] shift, output reg [31:0] acc
);
    wire [6:0] count;
    popcount64 equal (.x(~(w ^ a)), .count(count));
    wire [7:0] sum = {count, 1'b0} - 8'd64;
    wire [22:0] shifted = {{15{sum[7]}}, sum} << shift;
    always @(posedge clk) acc <= (clear ? 32'd0 : acc) + {{9{shifted[22]}}, shifted};
endmodule

// Ones of 64 bits: a tree whose sums grow by one bit a level.
module popcount64 (input [63:0] x, output [6:0] count);
    reg [63:0] two;                          // 32 sums of 2 bits
    reg [47:0] four;                         // 16 of 3
    reg [31:0] eight;                        // 8 of 4
    reg [19:0] sixteen;                      // 4 of 5
    reg [11:0] half;                         // 2 of 6
    integer i;
    always @* begin
        for (i = 0; i < 32; i = i + 1) two[2*i +: 2] = {1'b0, x[2*i]} + {1'b0, x[2*i+1]};
        for (i = 0; i < 16; i = i + 1) four[3*i +: 3] = {1'b0, two[4*i +: 2]} + {1'b0, two[4*i+2 +: 2]};
        for (i = 0; i < 8; i = i + 1) eight[4*i +: 4] = {1'b0, four[6*i +: 3]} + {1'b0, four[6*i+3 +: 3]};
        for (i = 0; i < 4; i = i + 1) sixteen[5*i +: 5] = {1'b0, eight[8*i +: 4]} + {1'b0, eight[8*i+4 +: 4]};
        for (i = 0; i < 2; i = i + 1) half[6*i +: 6] = {1'b0, sixteen[10*i +: 5]} + {1'b0, sixteen[10*i+5 +: 5]};
    end
    assign count = {1'b0, half[5:0]} + {1'b0, half[11:6]};
endmodule

// One lane of shift-parse requantization (RAP, arXiv 2411.14733): a stream of 32-bit accumulators becomes 8-bit integers
// by one arithmetic shift for each vector. While a vector passes, the bits that its numbers differ from their sign in are
// collected; at its end (`take`) their leading one gives the shift, by which the vector kept behind it is moved.
module shift_parse (
    input clk, input reset, input take,      // take: x is the first number of the next vector; reset: of all
    input [31:0] x,                          // a number of the vector that is looked at
    input [31:0] kept,                       // a number of the vector before it
    output reg [7:0] q,                      // kept >>> shift
    output reg [4:0] shift
);
    reg [30:0] ored;
    wire [30:0] varying = x[30:0] ^ {31{x[31]}};
    reg [4:0] found;
    integer b;
    always @* begin                          // bits beyond the seven that a sign leaves
        found = 0;
        for (b = 7; b < 31; b = b + 1) if (ored[b]) found = b - 6;
    end
    wire [4:0] by = reset ? 5'd0 : take ? found : shift;
    wire signed [31:0] moved = $signed(kept) >>> by;
    always @(posedge clk) begin
        ored <= (reset | take ? 31'd0 : ored) | varying;
        shift <= by;
        q <= moved[7:0];
    end
endmodule

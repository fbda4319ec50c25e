// Tender's processing element (arXiv 2406.12930): an INT4 multiply-accumulate whose accumulator moves up by one bit
// between channel groups, which come from the largest down. A shift takes a cycle of its own.
module tender_mac (
    input clk, input clear, input shift, input [3:0] w, input [3:0] a, output reg [31:0] acc
);
    wire [7:0] product;
    signed_multiply #(.M(4), .N(4)) multiply (.w(w), .a(a), .product(product));
    wire [31:0] sum = (clear ? 32'd0 : acc) + {{24{product[7]}}, product};
    always @(posedge clk) acc <= shift ? {acc[30:0], 1'b0} : sum;
endmodule

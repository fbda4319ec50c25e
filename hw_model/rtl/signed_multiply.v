// Two's complement product by Baugh and Wooley (1973): every partial product is positive, so that nothing is extended by
// its sign on the way through the adders, as a library multiplier would have it.
module signed_multiply #(parameter M = 8, parameter N = 8) (
    input [M-1:0] w, input [N-1:0] a, output [M+N-1:0] product
);
    localparam [M+N-1:0] CORRECTION = (1 << (M - 1)) + (1 << (N - 1)) + (1 << (M + N - 1));
    wire [M-2:0] low_w = ~(w[M-2:0] & {(M-1){a[N-1]}});
    wire [N-2:0] low_a = ~(a[N-2:0] & {(N-1){w[M-1]}});
    assign product = w[M-2:0] * a[N-2:0] + ({{(M+N-1){1'b0}}, w[M-1] & a[N-1]} << (M + N - 2))
        + ({{(N+1){1'b0}}, low_w} << (N - 1)) + ({{(M+1){1'b0}}, low_a} << (M - 1)) + CORRECTION;
endmodule

// The sum of LANES such products: each is made positive by an offset, which leaves the sum at the end.
module signed_sum #(parameter M = 8, parameter N = 8, parameter LANES = 16, parameter WIDE = 20) (
    input [LANES*M-1:0] w, input [LANES*N-1:0] a, output [WIDE-1:0] sum
);
    wire [LANES*(M+N)-1:0] products;
    genvar lane;
    generate
        for (lane = 0; lane < LANES; lane = lane + 1)
            signed_multiply #(.M(M), .N(N)) multiply (
                .w(w[lane*M +: M]), .a(a[lane*N +: N]), .product(products[lane*(M+N) +: M+N]));
    endgenerate
    integer i;
    reg [WIDE-1:0] total;
    always @* begin
        total = 0;
        for (i = 0; i < LANES; i = i + 1)
            total = total + {~products[i*(M+N)+M+N-1], products[i*(M+N) +: M+N-1]};
    end
    assign sum = total - (LANES << (M + N - 1));
endmodule

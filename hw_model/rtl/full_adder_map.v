// Yosys' carry-save adders as full-adder cells of the library (osu018).
module \$fa (A, B, C, X, Y);
    parameter WIDTH = 1;
    input [WIDTH-1:0] A, B, C;
    output [WIDTH-1:0] X, Y;                 // carry and sum
    genvar i;
    generate
        for (i = 0; i < WIDTH; i = i + 1)
            FAX1 adder (.A(A[i]), .B(B[i]), .C(C[i]), .YC(X[i]), .YS(Y[i]));
    endgenerate
endmodule

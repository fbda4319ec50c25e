// Baselines: plain integer multiply-accumulate, one product a cycle.
module mac_8x16 (input clk, input clear, input [7:0] w, input [15:0] a, output reg [39:0] acc);
    wire [23:0] product;
    signed_multiply #(.M(8), .N(16)) multiply (.w(w), .a(a), .product(product));
    always @(posedge clk) acc <= (clear ? 40'd0 : acc) + {{16{product[23]}}, product};
endmodule

module mac_8x8 (input clk, input clear, input [7:0] w, input [7:0] a, output reg [31:0] acc);
    wire [15:0] product;
    signed_multiply #(.M(8), .N(8)) multiply (.w(w), .a(a), .product(product));
    always @(posedge clk) acc <= (clear ? 32'd0 : acc) + {{16{product[15]}}, product};
endmodule

module mac_4x4 (input clk, input clear, input [3:0] w, input [3:0] a, output reg [23:0] acc);
    wire [7:0] product;
    signed_multiply #(.M(4), .N(4)) multiply (.w(w), .a(a), .product(product));
    always @(posedge clk) acc <= (clear ? 24'd0 : acc) + {{16{product[7]}}, product};
endmodule

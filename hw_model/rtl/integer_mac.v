// Baselines: plain integer multiply-accumulate, one product a cycle.
module mac_8x16 (input clk, input clear, input signed [7:0] w, input signed [15:0] a, output reg signed [39:0] acc);
    wire signed [23:0] product = w * a;
    wire signed [39:0] base = clear ? 40'd0 : acc;
    always @(posedge clk) acc <= base + {{16{product[23]}}, product};
endmodule

module mac_8x8 (input clk, input clear, input signed [7:0] w, input signed [7:0] a, output reg signed [31:0] acc);
    wire signed [15:0] product = w * a;
    wire signed [31:0] base = clear ? 32'd0 : acc;
    always @(posedge clk) acc <= base + {{16{product[15]}}, product};
endmodule

module mac_4x4 (input clk, input clear, input signed [3:0] w, input signed [3:0] a, output reg signed [23:0] acc);
    wire signed [7:0] product = w * a;
    wire signed [23:0] base = clear ? 24'd0 : acc;
    always @(posedge clk) acc <= base + {{16{product[7]}}, product};
endmodule

// Sixteen SDR products a cycle: codes are multiplied and added as they are, one shifter behind the adder tree moves the
// sum of the group by both flags. acc <= (clear ? 0 : acc) + ((sum_i w_i * a_i) << (flag_w + flag_a)).
module sdr_dot16 (
    input clk, input clear,
    input [63:0] w, input [63:0] a,          // 16 codes {sign, magnitude}
    input [2:0] flag_w, input [3:0] flag_a,
    output reg signed [39:0] acc
);
    integer i;
    reg [5:0] magnitude;
    reg sign;
    reg [10:0] total;                        // products plus 64 each, so that all of them are positive
    always @* begin
        total = 0;
        for (i = 0; i < 16; i = i + 1) begin
            magnitude = w[4*i +: 3] * a[4*i +: 3];
            sign = w[4*i+3] ^ a[4*i+3];
            total = total + {~sign, magnitude ^ {6{sign}}} + sign;
        end
    end
    wire [10:0] sum = total - 11'd1024;      // at most 16 * 49 = 784 either way
    wire [4:0] shift = flag_w + flag_a;
    wire signed [26:0] shifted = {{16{sum[10]}}, sum} << shift;
    wire signed [39:0] base = clear ? 40'd0 : acc;
    always @(posedge clk) acc <= base + {{13{shifted[26]}}, shifted};
endmodule

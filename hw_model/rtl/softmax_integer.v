// One lane of the integer softmax (hw_model/functional/rap.py): exp(x - largest) by shifts and adds, and the product of a
// finished exponential with the reciprocal of the sum, which is a table of 16 entries behind its leading one. No divider,
// no multiplier wider than the reciprocal. Scores have 6 bits of fraction, exponentials 16 more; the sum is kept outside.
module softmax_integer (
    input clk,
    input signed [15:0] x, input signed [15:0] largest,
    input [22:0] kept,                       // an exponential of the row before
    input [33:0] total,                      // its sum, up to 2,048 keys
    output reg [22:0] e,                     // exponential of x
    output reg [15:0] p                      // probability of `kept`, in 2**-15
);
    wire signed [17:0] z = x - largest;      // never positive
    wire signed [18:0] y = z + (z >>> 1) - (z >>> 4);
    wire [12:0] n = -(y >>> 6);
    wire [6:0] f = {1'b0, y[5:0]};           // y + n * 64: 0..63
    wire [22:0] one_and_f = {7'd64 + f, 16'd0};
    integer b;
    reg [5:0] place;
    reg [15:0] reciprocal;
    wire [33:0] aligned = total << (6'd33 - place);
    always @* begin
        place = 0;
        for (b = 0; b < 34; b = b + 1) if (total[b]) place = b;
    end
    always @* case (aligned[32:29])          // round(2**15 / (1 + (i + 1/2) / 16))
        4'd0: reciprocal = 16'd31775; 4'd1: reciprocal = 16'd29959; 4'd2: reciprocal = 16'd28340;
        4'd3: reciprocal = 16'd26887; 4'd4: reciprocal = 16'd25575; 4'd5: reciprocal = 16'd24385;
        4'd6: reciprocal = 16'd23302; 4'd7: reciprocal = 16'd22310; 4'd8: reciprocal = 16'd21400;
        4'd9: reciprocal = 16'd20560; 4'd10: reciprocal = 16'd19784; 4'd11: reciprocal = 16'd19065;
        4'd12: reciprocal = 16'd18396; 4'd13: reciprocal = 16'd17772; 4'd14: reciprocal = 16'd17190;
        default: reciprocal = 16'd16644;
    endcase
    wire [38:0] product = kept * reciprocal;
    wire [38:0] moved = product >> place;
    always @(posedge clk) begin
        e <= (n > 13'd22) ? 23'd0 : one_and_f >> n[4:0];
        p <= moved[15:0];
    end
endmodule

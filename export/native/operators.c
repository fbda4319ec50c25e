// CodebookMatMul and CodebookGather of the domain ai.athena as onnxruntime custom operators (export/contract/formats/codebook.py).
//
// onnxruntime calls RegisterCustomOps when the library is registered; from then on these kernels win over the function
// bodies in the file. Every size is checked before a kernel trusts it: a file may be wrong or hostile.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "onnxruntime_abi.h"

#define EXPORT __attribute__((visibility("default")))
#define TRY(call)                                                                                                    \
    do {                                                                                                             \
        OrtStatus *status_ = (call);                                                                                 \
        if (status_) return status_;                                                                                 \
    } while (0)

enum { MAX_DIMS = 8, VECTOR_BYTES = 1 << 15, GATHER_ROWS = 16 };

typedef struct {
    const OrtApi *api;
    const Kernels *kernels;
    Matrix matrix;
    int gather;       // CodebookGather, else CodebookMatMul
    int float_inputs; // activations stay float32
    int bound;        // codes, codebook and scale are constants of the model, checked once
} Operator;

typedef struct {
    void *data;
    OrtElementType type;
    size_t count; // of dimensions
    int64_t dims[MAX_DIMS];
} Tensor;

static OrtStatus *wrong(const OrtApi *api, const char *message) {
    return api->CreateStatus(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *open_tensor(const OrtApi *api, const OrtValue *value, Tensor *out) {
    OrtTensorInfo *info;
    TRY(api->GetTensorTypeAndShape(value, &info));
    OrtStatus *status = api->GetTensorElementType(info, &out->type);
    if (!status) status = api->GetDimensionsCount(info, &out->count);
    if (!status && out->count > MAX_DIMS) status = wrong(api, "ai.athena: a tensor has more than 8 dimensions");
    if (!status) status = api->GetDimensions(info, out->dims, out->count);
    api->ReleaseTensorTypeAndShapeInfo(info);
    TRY(status);
    return api->GetTensorMutableData((OrtValue *)value, &out->data);
}

static int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

static int64_t row_bytes(int64_t columns, int bits) {
    int64_t tail = columns % BLOCK, bytes = columns / BLOCK * (BLOCK / 8) * bits;
    for (int plane = 8; plane > 0; plane /= 2)
        if (bits & plane) bytes += (tail * plane + 7) / 8;
    return bytes;
}

static int has_shape(const Tensor *t, size_t count, int64_t a, int64_t b, int64_t c) {
    return t->count == count && t->dims[0] == a && t->dims[1] == b && (count < 3 || t->dims[2] == c);
}

static int is_raw(const Matrix *m) {
    if (m->bits != 8) return 0;
    int64_t entries = parts(m->rows, m->book_rows) * m->groups * 256;
    for (int64_t i = 0; i < entries; i++)
        if (m->book[i] != (int)(i % 256) - 128) return 0;
    return 1;
}

// Point the matrix at its three tensors, after checking that they have the types and shapes of the contract.
static OrtStatus *bind(const OrtApi *api, Matrix *m, const OrtValue *const values[3]) {
    Tensor codes, book, scale;
    TRY(open_tensor(api, values[0], &codes));
    TRY(open_tensor(api, values[1], &book));
    TRY(open_tensor(api, values[2], &scale));
    if (codes.type != TYPE_UINT8 || !has_shape(&codes, 2, m->rows, m->row_bytes, 0))
        return wrong(api, "ai.athena: codes do not have the shape that the attributes ask for");
    if (book.type != TYPE_INT8 || !has_shape(&book, 3, parts(m->rows, m->book_rows), m->groups, 1 << m->bits))
        return wrong(api, "ai.athena: codebook does not have the shape that the attributes ask for");
    if ((scale.type != TYPE_FLOAT && scale.type != TYPE_FLOAT16) ||
        !has_shape(&scale, 2, parts(m->rows, m->scale_rows), m->groups, 0))
        return wrong(api, "ai.athena: scale does not have the type or shape that the attributes ask for");
    m->codes = codes.data;
    m->book = book.data;
    m->scale = scale.data;
    m->half_scale = scale.type == TYPE_FLOAT16;
    m->raw = is_raw(m);
    return NULL;
}

static OrtStatus *read_attributes(const OrtApi *api, const OrtKernelInfo *info, Matrix *m) {
    struct { const char *name; int64_t low, high, value; } wanted[] = {
        {"bits", 1, 8, 0},
        {"K", 1, INT32_MAX, 0},
        {"N", 1, INT32_MAX, 0},
        {"group_size", 0, INT64_MAX, 0},
        {"rows_per_codebook", 1, INT32_MAX, 0},
        {"rows_per_scale", 1, INT32_MAX, 0},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        TRY(api->KernelInfoGetAttribute_int64(info, wanted[i].name, &wanted[i].value));
        if (wanted[i].value < wanted[i].low || wanted[i].value > wanted[i].high) {
            char message[96];
            snprintf(message, sizeof message, "ai.athena: attribute %s is out of range", wanted[i].name);
            return wrong(api, message);
        }
    }
    m->bits = (int)wanted[0].value;
    m->columns = wanted[1].value;
    m->rows = wanted[2].value;
    m->group_size = wanted[3].value && wanted[3].value < m->columns ? wanted[3].value : m->columns;
    m->groups = parts(m->columns, m->group_size);
    m->book_rows = wanted[4].value;
    m->scale_rows = wanted[5].value;
    m->row_bytes = row_bytes(m->columns, m->bits);
    return NULL;
}

static OrtStatus *create(const OrtApi *api, const OrtKernelInfo *info, int gather, int float_inputs, void **out) {
    Operator made = {.api = api, .kernels = athena_kernels(), .gather = gather, .float_inputs = float_inputs};
    TRY(read_attributes(api, info, &made.matrix));
    const OrtValue *values[3];
    int constants = 0, constant = 0;
    for (size_t i = 0; i < 3; i++) {
        TRY(api->KernelInfoGetConstantInput_tensor(info, i + 1, &constant, &values[i]));
        constants += constant != 0;
    }
    if (constants == 3) TRY(bind(api, &made.matrix, values));
    made.bound = constants == 3;
    Operator *kept = malloc(sizeof *kept);
    if (!kept) return api->CreateStatus(ORT_FAIL, "ai.athena: out of memory");
    *kept = made;
    *out = kept;
    return NULL;
}

// What the parallel parts of one call share.
typedef struct {
    const Operator *op;
    const Matrix *matrix;
    const float *x;
    const int64_t *ids;
    float *y;
    Activations activations;
    int64_t tokens, rows_per_item;
    volatile int out_of_memory;
} Call;

static void quantize_item(void *data, size_t item) {
    Call *call = data;
    call->op->kernels->quantize_group(call->x, call->matrix->columns, call->tokens, (int64_t)item, &call->activations);
}

static void vector_item(void *data, size_t item) {
    Call *call = data;
    int64_t first = (int64_t)item * call->rows_per_item, last = first + call->rows_per_item;
    call->op->kernels->vector(
        call->matrix, &call->activations, first, last < call->matrix->rows ? last : call->matrix->rows, call->y);
}

static void product_item(void *data, size_t item) {
    Call *call = data;
    uint8_t *scratch = malloc((size_t)(call->rows_per_item * call->activations.wide + 64));
    if (!scratch) {
        call->out_of_memory = 1;
        return;
    }
    call->op->kernels->product(call->matrix, &call->activations, call->tokens, (int64_t)item * call->rows_per_item,
                               scratch, call->y);
    free(scratch);
}

static void float_item(void *data, size_t item) {
    Call *call = data;
    const Matrix *m = call->matrix;
    int64_t first = (int64_t)item * call->rows_per_item, last = first + call->rows_per_item;
    float *row = malloc((size_t)m->columns * sizeof *row);
    if (!row) {
        call->out_of_memory = 1;
        return;
    }
    for (int64_t n = first; n < last && n < m->rows; n++) {
        call->op->kernels->decode_row(m, n, row);
        for (int64_t t = 0; t < call->tokens; t++)
            call->y[t * m->rows + n] = call->op->kernels->float_dot(call->x + t * m->columns, row, m->columns);
    }
    free(row);
}

static void gather_item(void *data, size_t item) {
    Call *call = data;
    int64_t first = (int64_t)item * GATHER_ROWS, last = first + GATHER_ROWS;
    for (int64_t i = first; i < last && i < call->tokens; i++)
        call->op->kernels->decode_row(call->matrix, call->ids[i], call->y + i * call->matrix->columns);
}

static OrtStatus *in_parallel(Call *call, const OrtKernelContext *context, void (*work)(void *, size_t), int64_t count) {
    if (count == 1) {
        work(call, 0);
    } else {
        TRY(call->op->api->KernelContext_ParallelFor(context, work, (size_t)count, 0, call));
    }
    return call->out_of_memory ? call->op->api->CreateStatus(ORT_FAIL, "ai.athena: out of memory") : NULL;
}

static OrtStatus *integer_matmul(Call *call, const OrtKernelContext *context) {
    const Matrix *m = call->matrix;
    const int64_t groups = call->tokens == 1 ? 1 : parts(call->tokens, 2 * LANES) * 2; // tiles take two at a time
    const int64_t lanes = call->tokens == 1 ? 1 : LANES;
    Activations *a = &call->activations;
    a->wide = parts(m->columns, 64) * 64;
    a->blocks = parts(m->columns, BLOCK);
    // Bytes, then sums (16 for every block and group), then scales and high digits: each a multiple of 64 bytes but
    // the last.
    size_t bytes = (size_t)(groups * lanes * a->wide), sums = (size_t)(groups * a->blocks * LANES) * 4;
    size_t high = (size_t)(groups * a->blocks) * (call->tokens == 1 ? sizeof(HighToken) : sizeof(HighGroup));
    char *memory = malloc(bytes + 2 * sums + high + 64);
    if (!memory) return call->op->api->CreateStatus(ORT_FAIL, "ai.athena: out of memory");
    char *start = memory + (64 - (uintptr_t)memory % 64);
    a->bytes = (int8_t *)start;
    a->sums = (int32_t *)(start + bytes);
    a->scales = (float *)(start + bytes + sums);
    a->high = start + bytes + 2 * sums;
    OrtStatus *status = NULL;
    int64_t filled = parts(call->tokens, lanes); // the group behind them is only there to complete a tile
    memset(a->bytes + filled * lanes * a->wide, 0, (size_t)((groups - filled) * lanes * a->wide));
    memset(a->sums + filled * a->blocks * LANES, 0, (size_t)((groups - filled) * a->blocks * LANES) * 4);
    memset(a->scales + filled * a->blocks * LANES, 0, (size_t)((groups - filled) * a->blocks * LANES) * 4);
    for (int64_t i = filled * a->blocks; i < groups * a->blocks; i++) ((HighGroup *)a->high)[i].places = 0;
    if (call->tokens == 1) {
        call->op->kernels->quantize_token(call->x, m->columns, a);
        call->rows_per_item = VECTOR_BYTES / m->row_bytes + 1;
        status = in_parallel(call, context, vector_item, parts(m->rows, call->rows_per_item));
    } else {
        status = in_parallel(call, context, quantize_item, filled);
        call->rows_per_item = call->op->kernels->tile_rows;
        if (!status) status = in_parallel(call, context, product_item, parts(m->rows, call->rows_per_item));
    }
    free(memory);
    return status;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
    const Operator *op = kernel;
    const OrtApi *api = op->api;
    Matrix matrix = op->matrix;
    const OrtValue *values[4];
    for (size_t i = 0; i < 4; i++) TRY(api->KernelContext_GetInput(context, i, &values[i]));
    if (!op->bound) TRY(bind(api, &matrix, values + 1));
    Tensor x;
    TRY(open_tensor(api, values[0], &x));
    int64_t dims[MAX_DIMS + 1], tokens = 1;
    const size_t batch = op->gather ? x.count : x.count - 1; // dimensions that stay
    if (!op->gather && (x.count == 0 || x.dims[x.count - 1] != matrix.columns))
        return wrong(api, "ai.athena: the last dimension of X is not K");
    for (size_t i = 0; i < batch; i++) tokens *= dims[i] = x.dims[i];
    dims[batch] = op->gather ? matrix.columns : matrix.rows;
    OrtValue *output;
    Tensor y;
    TRY(api->KernelContext_GetOutput(context, 0, dims, batch + 1, &output));
    TRY(api->GetTensorMutableData(output, &y.data));
    Call call = {.op = op, .matrix = &matrix, .x = x.data, .ids = x.data, .y = y.data, .tokens = tokens};
    if (tokens == 0) return NULL;
    if (op->gather) {
        for (int64_t i = 0; i < tokens; i++)
            if (call.ids[i] < 0 || call.ids[i] >= matrix.rows)
                return wrong(api, "ai.athena: an id is outside the rows of the matrix");
        return in_parallel(&call, context, gather_item, parts(tokens, GATHER_ROWS));
    }
    if (op->float_inputs || matrix.groups > 1) {
        call.rows_per_item = VECTOR_BYTES / matrix.row_bytes + 1;
        return in_parallel(&call, context, float_item, parts(matrix.rows, call.rows_per_item));
    }
    return integer_matmul(&call, context);
}

static OrtStatus *create_matmul(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    (void)op;
    return create(api, info, 0, 0, out);
}
static OrtStatus *create_float_matmul(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    (void)op;
    return create(api, info, 0, 1, out);
}
static OrtStatus *create_gather(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    (void)op;
    return create(api, info, 1, 0, out);
}
static const char *matmul_name(const OrtCustomOp *op) { return (void)op, "CodebookMatMul"; }
static const char *gather_name(const OrtCustomOp *op) { return (void)op, "CodebookGather"; }
static const char *provider(const OrtCustomOp *op) { return (void)op, NULL; } // the CPU's
static OrtElementType input_type(size_t index, OrtElementType first) {
    const OrtElementType types[] = {first, TYPE_UINT8, TYPE_INT8, TYPE_UNDEFINED}; // scale: checked by bind
    return index < 4 ? types[index] : TYPE_UNDEFINED;
}
static OrtElementType matmul_input(const OrtCustomOp *op, size_t index) { return (void)op, input_type(index, TYPE_FLOAT); }
static OrtElementType gather_input(const OrtCustomOp *op, size_t index) { return (void)op, input_type(index, TYPE_INT64); }
static OrtElementType output_type(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, TYPE_FLOAT; }
static size_t input_count(const OrtCustomOp *op) { return (void)op, 4; }
static size_t output_count(const OrtCustomOp *op) { return (void)op, 1; }
static int required(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static int default_memory(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static int first_version(const OrtCustomOp *op) { return (void)op, 1; }
static int last_version(const OrtCustomOp *op) { return (void)op, INT32_MAX; }

#define OPERATOR(name, input, creator)                                                                               \
    {                                                                                                                \
        .version = ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider, .GetInputType = input,     \
        .GetInputTypeCount = input_count, .GetOutputType = output_type, .GetOutputTypeCount = output_count,          \
        .KernelDestroy = free, .GetInputCharacteristic = required, .GetOutputCharacteristic = required,              \
        .GetInputMemoryType = default_memory, .CreateKernelV2 = creator, .KernelComputeV2 = compute,                 \
        .GetStartVersion = first_version, .GetEndVersion = last_version,                                             \
    }
static const OrtCustomOp matmul = OPERATOR(matmul_name, matmul_input, create_matmul);
static const OrtCustomOp float_matmul = OPERATOR(matmul_name, matmul_input, create_float_matmul);
static const OrtCustomOp gather = OPERATOR(gather_name, gather_input, create_gather);

// Whether the session asks for float32 activations: config entry ai.athena.activations = float32 (default int8).
static OrtStatus *wants_float(const OrtApi *api, const OrtSessionOptions *options, int *out) {
    char value[16] = "";
    size_t size = sizeof value;
    OrtStatus *absent = api->GetSessionConfigEntry(options, "ai.athena.activations", value, &size);
    if (absent) {
        api->ReleaseStatus(absent);
        value[0] = 0;
    }
    *out = !strcmp(value, "float32");
    if (value[0] && !*out && strcmp(value, "int8"))
        return wrong(api, "ai.athena.activations must be int8 or float32");
    return NULL;
}

// The kernels in use, for tests that call them behind protected pages.
EXPORT const Kernels *AthenaKernels(void) { return athena_kernels(); }

EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi *api = base->GetApi(ORT_API_VERSION);
    if (!api)
        return base->GetApi(1)->CreateStatus(ORT_FAIL, "ai.athena: this library needs onnxruntime 1.22 or newer");
    int floats;
    OrtCustomOpDomain *domain;
    TRY(wants_float(api, options, &floats));
    TRY(api->CreateCustomOpDomain("ai.athena", &domain));
    TRY(api->CustomOpDomain_Add(domain, floats ? &float_matmul : &matmul));
    TRY(api->CustomOpDomain_Add(domain, &gather));
    return api->AddCustomOpDomain(options, domain);
}

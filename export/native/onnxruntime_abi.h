// The part of onnxruntime's C interface that a custom operator needs, written down from its public header (API 22).
// Every function of that interface has a fixed place in one table; places never change, so the gaps stay unnamed.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 22

typedef struct OrtStatus OrtStatus; // NULL means success
typedef struct OrtValue OrtValue;
typedef struct OrtTensorInfo OrtTensorInfo;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtCustomOp OrtCustomOp;

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
typedef enum {
    TYPE_UNDEFINED = 0,
    TYPE_FLOAT = 1,
    TYPE_UINT8 = 2,
    TYPE_INT8 = 3,
    TYPE_INT64 = 7,
    TYPE_FLOAT16 = 10
} OrtElementType;

typedef struct OrtApi {
    OrtStatus *(*CreateStatus)(int code, const char *message);
    void *unused_1[25];
    OrtStatus *(*CreateCustomOpDomain)(const char *domain, OrtCustomOpDomain **out);
    OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op);
    OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
    void *unused_29[22];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **out);
    void *unused_52[8];
    OrtStatus *(*GetTensorElementType)(const OrtTensorInfo *info, OrtElementType *out);
    OrtStatus *(*GetDimensionsCount)(const OrtTensorInfo *info, size_t *out);
    OrtStatus *(*GetDimensions)(const OrtTensorInfo *info, int64_t *values, size_t count);
    void *unused_63[2];
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorInfo **out);
    void *unused_66[20];
    OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name, int64_t *out);
    void *unused_87[3];
    OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **out);
    OrtStatus *(*KernelContext_GetOutput)(
        OrtKernelContext *context, size_t index, const int64_t *dims, size_t count, OrtValue **out);
    void *unused_92;
    void (*ReleaseStatus)(OrtStatus *status);
    void *unused_94[5];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorInfo *info);
    void *unused_100[138];
    OrtStatus *(*GetSessionConfigEntry)(
        const OrtSessionOptions *options, const char *key, char *value, size_t *size);
    void *unused_239[10];
    OrtStatus *(*KernelInfoGetConstantInput_tensor)(
        const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **out);
    void *unused_250[24];
    OrtStatus *(*KernelContext_ParallelFor)(
        const OrtKernelContext *context, void (*work)(void *, size_t), size_t total, size_t batches, void *data);
} OrtApi;

#define AT_PLACE(name, place) _Static_assert(offsetof(OrtApi, name) == (place) * sizeof(void *), #name)
AT_PLACE(AddCustomOpDomain, 28);
AT_PLACE(GetTensorMutableData, 51);
AT_PLACE(GetTensorElementType, 60);
AT_PLACE(GetTensorTypeAndShape, 65);
AT_PLACE(KernelInfoGetAttribute_int64, 86);
AT_PLACE(KernelContext_GetInput, 90);
AT_PLACE(ReleaseStatus, 93);
AT_PLACE(ReleaseTensorTypeAndShapeInfo, 99);
AT_PLACE(GetSessionConfigEntry, 238);
AT_PLACE(KernelInfoGetConstantInput_tensor, 249);
AT_PLACE(KernelContext_ParallelFor, 274);

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version); // NULL when this onnxruntime is older
    const char *(*GetVersionString)(void);
} OrtApiBase;

// Callbacks that describe one operator; onnxruntime reads the struct by the layout of `version`.
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
    const char *(*GetName)(const OrtCustomOp *op);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *op);
    OrtElementType (*GetInputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp *op);
    OrtElementType (*GetOutputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
    void (*KernelCompute)(void *kernel, OrtKernelContext *context);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index);
    int (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp *op, size_t index);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *op, void *context);
    int (*GetStartVersion)(const OrtCustomOp *op);
    int (*GetEndVersion)(const OrtCustomOp *op);
    size_t (*GetMayInplace)(int **inputs, int **outputs);
    void (*ReleaseMayInplace)(int *inputs, int *outputs);
    size_t (*GetAliasMap)(int **inputs, int **outputs);
    void (*ReleaseAliasMap)(int *inputs, int *outputs);
};

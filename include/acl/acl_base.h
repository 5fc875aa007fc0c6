/*
 * Types, error codes and conversions that all of the CANN-compatible interface shares. The numbers are those of CANN's
 * binary interface and never change.
 */
#ifndef NORMROPE_ACL_BASE_H
#define NORMROPE_ACL_BASE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ACL_FUNC_VISIBILITY __attribute__((visibility("default")))
#else
#define ACL_FUNC_VISIBILITY
#endif

/* What a call returns: 0 or one of the codes below. The text of the calling thread's last failure is
   aclGetRecentErrMsg. */
typedef int aclError;

static const int ACL_ERROR_NONE = 0;
static const int ACL_SUCCESS = 0;

/* The caller's mistakes. */
static const int ACL_ERROR_INVALID_PARAM = 100000;
static const int ACL_ERROR_UNINITIALIZE = 100001;
static const int ACL_ERROR_REPEAT_INITIALIZE = 100002;
static const int ACL_ERROR_INVALID_FILE = 100003;
static const int ACL_ERROR_REPEAT_FINALIZE = 100037;

/* What the machine lacks. */
static const int ACL_ERROR_BAD_ALLOC = 200000;
static const int ACL_ERROR_API_NOT_SUPPORT = 200001;
static const int ACL_ERROR_INVALID_DEVICE = 200002;
static const int ACL_ERROR_MEMORY_ADDRESS_UNALIGNED = 200003;
static const int ACL_ERROR_INVALID_RESOURCE_HANDLE = 200005;
static const int ACL_ERROR_FEATURE_UNSUPPORTED = 200006;
static const int ACL_ERROR_STORAGE_OVER_LIMIT = 300000;

/* The library's own failures. */
static const int ACL_ERROR_INTERNAL_ERROR = 500000;
static const int ACL_ERROR_FAILURE = 500001;
static const int ACL_ERROR_RT_FAILURE = 500003;

/* Handles. They are looked up, never followed: one that is null, was destroyed or never was a handle is refused. */
typedef void *aclrtContext;
typedef void *aclrtStream;
typedef void *aclrtEvent;

/* The bits of an IEEE binary16. */
typedef uint16_t aclFloat16;

typedef enum {
  ACL_DT_UNDEFINED = -1,
  ACL_FLOAT = 0,
  ACL_FLOAT16 = 1,
  ACL_BF16 = 27,
  ACL_DOUBLE = 11,
  ACL_BOOL = 12,
  ACL_INT8 = 2,
  ACL_INT16 = 6,
  ACL_INT32 = 3,
  ACL_INT64 = 9,
  ACL_UINT8 = 4,
  ACL_UINT16 = 7,
  ACL_UINT32 = 8,
  ACL_UINT64 = 10,
  ACL_STRING = 13,
  ACL_COMPLEX32 = 33,
  ACL_COMPLEX64 = 16,
  ACL_COMPLEX128 = 17,
  ACL_INT4 = 29,
  ACL_UINT1 = 30,
  ACL_HIFLOAT8 = 34,
  ACL_FLOAT8_E5M2 = 35,
  ACL_FLOAT8_E4M3FN = 36,
  ACL_FLOAT8_E8M0 = 37,
  ACL_FLOAT6_E3M2 = 38,
  ACL_FLOAT6_E2M3 = 39,
  ACL_FLOAT4_E2M1 = 40,
  ACL_FLOAT4_E1M2 = 41
} aclDataType;

typedef enum {
  ACL_FORMAT_UNDEFINED = -1,
  ACL_FORMAT_ND = 2,
  ACL_FORMAT_NC = 35,
  ACL_FORMAT_NCL = 47,
  ACL_FORMAT_NCHW = 0,
  ACL_FORMAT_NHWC = 1,
  ACL_FORMAT_HWCN = 16,
  ACL_FORMAT_NCDHW = 30,
  ACL_FORMAT_NDHWC = 27,
  ACL_FORMAT_NC1HWC0 = 3,
  ACL_FORMAT_NC1HWC0_C04 = 12,
  ACL_FORMAT_NDC1HWC0 = 32,
  ACL_FORMAT_FRACTAL_Z = 4,
  ACL_FRACTAL_Z_3D = 33,
  ACL_FORMAT_FRACTAL_NZ = 29
} aclFormat;

typedef enum { ACL_DEBUG = 0, ACL_INFO = 1, ACL_WARNING = 2, ACL_ERROR = 3 } aclLogLevel;

/* Bytes of an element; 0 where an element is no whole number of bytes or the type is unknown. */
ACL_FUNC_VISIBILITY size_t aclDataTypeSize(aclDataType dataType);

/* Exact, and rounded to nearest even (overflow to infinity, NaN stays NaN, subnormals are kept). */
ACL_FUNC_VISIBILITY float aclFloat16ToFloat(aclFloat16 value);
ACL_FUNC_VISIBILITY aclFloat16 aclFloatToFloat16(float value);

/* What the calling thread's last failure since the last reading was about; NULL if there was none. Reading clears it.
   The text lives until this thread's next reading. */
ACL_FUNC_VISIBILITY const char *aclGetRecentErrMsg(void);

#ifdef __cplusplus
}
#endif

#endif

// A stand-in for cuBLASLt that computes nothing and checks the sizes that it is given, for a dry run of basic_core's calls.
// A call whose matrices do not fit each other is reported on standard error and refused.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t type, batch; uint64_t rows, cols; int64_t ld, stride; } Layout;
typedef struct { int32_t a, b; } Operation;

static long products;
// Only if CUDA_STUB_PRODUCTS is set.
static void report(void) { if (getenv("CUDA_STUB_PRODUCTS")) fprintf(stderr, "cublasLt: %ld products\n", products); }

int cublasLtCreate(void **handle) { *handle = malloc(1); atexit(report); return 0; }
int cublasLtDestroy(void *handle) { free(handle); return 0; }
int cublasLtMatmulDescCreate(Operation **d, int compute, int scale) { (void)compute; (void)scale; *d = calloc(1, sizeof **d); return 0; }
int cublasLtMatmulDescDestroy(Operation *d) { free(d); return 0; }
int cublasLtMatmulDescSetAttribute(Operation *d, int attribute, const void *value, size_t size) {
  if (size != 4) return 7;
  memcpy(attribute == 3 ? &d->a : &d->b, value, 4);
  return 0;
}
int cublasLtMatrixLayoutCreate(Layout **l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *l = malloc(sizeof **l);
  **l = (Layout){type, 1, rows, cols, ld, 0};
  return (uint64_t)ld < rows ? 7 : 0;
}
int cublasLtMatrixLayoutDestroy(Layout *l) { free(l); return 0; }
int cublasLtMatrixLayoutSetAttribute(Layout *l, int attribute, const void *value, size_t size) {
  if (attribute == 5 && size == 4) memcpy(&l->batch, value, 4);
  else if (attribute == 6 && size == 8) memcpy(&l->stride, value, 8);
  else return 7;
  return 0;
}
int cublasLtMatmulPreferenceCreate(void **p) { *p = malloc(1); return 0; }
int cublasLtMatmulPreferenceDestroy(void *p) { free(p); return 0; }
int cublasLtMatmulPreferenceSetAttribute(void *p, int attribute, const void *value, size_t size) {
  (void)p; (void)attribute; (void)value; (void)size;
  return 0;
}
static int fits(const Operation *op, const Layout *a, const Layout *b, const Layout *d) {
  uint64_t m = op->a ? a->cols : a->rows, k = op->a ? a->rows : a->cols;
  uint64_t j = op->b ? b->cols : b->rows, n = op->b ? b->rows : b->cols;
  int same = a->batch == b->batch && b->batch == d->batch && a->type == b->type;
  if (same && m == d->rows && n == d->cols && j == k) return 1;
  fprintf(stderr, "cublasLt: %lux%lu by %lux%lu into %lux%lu\n", m, k, j, n, d->rows, d->cols);
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void *h, Operation *op, Layout *a, Layout *b, Layout *c, Layout *d, void *p, int asked,
                                   void *found, int *count) {
  (void)h; (void)c; (void)p; (void)asked;
  memset(found, 0, 96);
  *count = fits(op, a, b, d);
  return 0;
}
int cublasLtMatmul(void *h, Operation *op, const void *alpha, const void *A, Layout *a, const void *B, Layout *b,
                   const void *beta, const void *C, Layout *c, void *D, Layout *d, const void *algo, void *workspace,
                   size_t size, void *stream) {
  (void)h; (void)beta; (void)c; (void)algo; (void)size;
  products++;
  // The product of this number, from 1, fails.
  const char *failing = getenv("CUDA_STUB_PRODUCT_FAILS");
  if (failing && products == atol(failing))
    return 13;
  // Like the driver's trace: a line for each product.
  static FILE *trace;
  if (!trace && getenv("CUDA_STUB_TRACE"))
    trace = fopen(getenv("CUDA_STUB_TRACE"), "a");
  if (trace) {
    fprintf(trace, "product %lux%lux%lu batch %d\n", d->cols, op->a ? a->rows : a->cols, d->rows, (int)a->batch);
    fflush(trace);
  }
  return fits(op, a, b, d) && *(const float *)alpha == 1 && A && B && C == D && workspace && stream ? 0 : 7;
}

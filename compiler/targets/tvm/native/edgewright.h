/* Decoding with an Edgewright TVM artifact: open, feed tokens, read logits. Plain C.
 *
 * Link edgewright.cc with libtvm_runtime and libtvm_ffi of the version that the artifact's README names. A model is
 * used by one thread at a time; its kernels run on TVM's thread pool. Functions return 0, or -1 with the reason in
 * edgewright_error() (of the calling thread). Parameters are mapped read-only and shared between processes. */
#ifndef EDGEWRIGHT_H_
#define EDGEWRIGHT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct edgewright_model edgewright_model;

/* The variants that this CPU runs, best first, separated by spaces: "i8mm dotprod neon" on a recent phone. */
const char* edgewright_variants(void);

/* Open the best library in `folder` (files libmodel-<variant>.so) over the parameters in `params`. With iOS, where
 * the archive is linked into the app, `folder` is NULL. threads: 0 for TVM's choice. NULL when it fails, also when
 * the parameters were not made for the library. */
edgewright_model* edgewright_open(const char* folder, const char* params, int threads);

/* As edgewright_open, with this library file; exact != 0: float32 activations, for comparing with the reference. */
edgewright_model* edgewright_open_library(const char* library, const char* params, int threads, int exact);

/* Logits per position, and positions in the cache. */
size_t edgewright_vocabulary(const edgewright_model* model);
size_t edgewright_capacity(const edgewright_model* model);

/* Append `count` tokens to the context; `logits` [vocabulary] of the last one. */
int edgewright_feed(edgewright_model* model, const int32_t* tokens, size_t count, float* logits);

/* As edgewright_feed, with the logits of every token: [count, vocabulary]. */
int edgewright_score(edgewright_model* model, const int32_t* tokens, size_t count, float* logits);

/* Forget the context. */
void edgewright_reset(edgewright_model* model);
void edgewright_close(edgewright_model* model);
const char* edgewright_error(void);

#ifdef __cplusplus
}
#endif
#endif /* EDGEWRIGHT_H_ */

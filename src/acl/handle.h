/*
 * Handles: what the ACL interface gives out in place of pointers. A handle is an odd number that encodes a kind, a slot
 * and the slot's generation; it is looked up, never followed, so a null, stale, double-destroyed, foreign or made-up
 * handle is recognised. Every function here may be called from any thread at any time.
 *
 * An object lives until its handle is retired and the last reference from nr_handle_acquire is released; then its
 * destroy function runs, on the thread that let go last. Slots are reused under a new generation and their memory is
 * kept for the process: it is bounded by the most handles that were ever alive at once.
 */
#ifndef NR_ACL_HANDLE_H
#define NR_ACL_HANDLE_H

#include <stdbool.h>
#include <stdint.h>

typedef enum nr_handle_kind {
  NR_HANDLE_CONTEXT = 1,
  NR_HANDLE_STREAM,
  NR_HANDLE_EVENT,
  NR_HANDLE_TENSOR,
  NR_HANDLE_EXECUTOR
} nr_handle_kind;

/* A handle for `object` (not NULL). `destroy` may be NULL: the object then stays its maker's. NULL without memory; the
   object is then untouched. */
void *nr_handle_new(nr_handle_kind kind, void *object, void (*destroy)(void *object));

/* The same for objects that nr_handle_next may find and that must know their handle: *self, a field of the object, is
   set before the handle lives. Once it does, another thread may retire it: use the result, not the object. */
void *nr_handle_new_known(nr_handle_kind kind, void *object, void (*destroy)(void *object), void **self);

/* The object, with a reference that keeps it alive until nr_handle_release; NULL if `handle` is no living handle of
   this kind. */
void *nr_handle_acquire(nr_handle_kind kind, const void *handle);

/* Gives back one reference that nr_handle_acquire gave for this handle, which may be retired by now. */
void nr_handle_release(const void *handle);

/* From now on the handle is invalid. The object goes at once or with its last reference. False if it already was no
   living handle of this kind: of several threads that retire one handle, one gets true. */
bool nr_handle_retire(nr_handle_kind kind, const void *handle);

/* Walks the living handles of a kind: start with *cursor = 0, stop at NULL. Handles made or retired meanwhile may or
   may not be seen. */
void *nr_handle_next(nr_handle_kind kind, uint32_t *cursor);

#endif

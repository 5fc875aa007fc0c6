#include "acl/handle.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "base/alloc.h"

_Static_assert(sizeof(void *) == 8, "handles are 64 bits");

/*
 * Handle:     1010 | generation (32) | index (24) | kind (3) | 1
 *             odd, and with top bits that no user address has, so no pointer of the program can be taken for one.
 * Slot state: generation (32) | living (1) | kind (3) | references (28)
 */
#define TAG 0xAULL
#define LIVING (1ULL << 31)
#define REFERENCES ((1ULL << 28) - 1)

enum { CHUNKS = 16, FIRST_CHUNK = 256 }; /* chunk k has FIRST_CHUNK << k slots: just under 2^24 in all */

typedef struct slot {
  atomic_uint_fast64_t state;
  void *object; /* these two are written before the state says living, read only with a reference */
  void (*destroy)(void *object);
  atomic_uint next; /* while free: 1 + index of the next free slot, 0 at the end */
} slot;

static slot *_Atomic chunks[CHUNKS];   /* slots never move and are never freed: a stale handle must find its slot */
static atomic_uint_fast64_t free_list; /* changes (40) | 1 + index of the first free slot (24) */
static pthread_mutex_t grow_lock = PTHREAD_MUTEX_INITIALIZER;

static slot *slot_at(uint32_t index) {
  uint32_t n = index + FIRST_CHUNK, k = 23 - (uint32_t)__builtin_clz(n); /* n lies in [256 << k, 512 << k) */
  if (k >= CHUNKS)
    return NULL;
  slot *chunk = atomic_load_explicit(&chunks[k], memory_order_acquire);
  return chunk ? chunk + (n - ((uint32_t)FIRST_CHUNK << k)) : NULL;
}

static void *make_handle(uint32_t index, uint64_t state) {
  uint64_t kind = state >> 28 & 7, generation = state >> 32;
  return (void *)(uintptr_t)(TAG << 60 | generation << 28 | (uint64_t)index << 4 | kind << 1 | 1);
}

static uint32_t index_of(const void *handle) { return (uint32_t)((uintptr_t)handle >> 4 & 0xFFFFFF); }

/* The slot and the state (without references) that `handle` stands for while it lives; NULL if it never was a handle.
 */
static slot *find(nr_handle_kind kind, const void *handle, uint64_t *state) {
  uint64_t bits = (uintptr_t)handle;
  if (bits >> 60 != TAG || (bits & 15) != ((uint64_t)kind << 1 | 1))
    return NULL;
  *state = (bits >> 28 & UINT32_MAX) << 32 | LIVING | (uint64_t)kind << 28;
  return slot_at(index_of(handle));
}

static void push_free(uint32_t first, slot *last) {
  uint64_t head = atomic_load_explicit(&free_list, memory_order_relaxed), wanted;
  do {
    atomic_store_explicit(&last->next, (unsigned)(head & 0xFFFFFF), memory_order_relaxed);
    wanted = (head >> 24 << 24) + (1 << 24) + first + 1;
  } while (
      !atomic_compare_exchange_weak_explicit(&free_list, &head, wanted, memory_order_release, memory_order_relaxed));
}

static slot *pop_free(uint32_t *index) {
  uint64_t head = atomic_load_explicit(&free_list, memory_order_acquire), wanted;
  slot *s;
  do {
    if ((head & 0xFFFFFF) == 0)
      return NULL;
    *index = (uint32_t)(head & 0xFFFFFF) - 1;
    s = slot_at(*index);
    wanted = (head >> 24 << 24) + (1 << 24) + atomic_load_explicit(&s->next, memory_order_relaxed);
  } while (
      !atomic_compare_exchange_weak_explicit(&free_list, &head, wanted, memory_order_acquire, memory_order_acquire));
  return s;
}

/* Takes a slot, if need be out of a new chunk. */
static slot *take_slot(uint32_t *index) {
  slot *s = pop_free(index);
  if (s)
    return s;
  pthread_mutex_lock(&grow_lock);
  s = pop_free(index);
  int k = 0;
  while (!s && k < CHUNKS && atomic_load_explicit(&chunks[k], memory_order_relaxed))
    k++;
  slot *chunk = s || k == CHUNKS ? NULL : nr_calloc((size_t)FIRST_CHUNK << k, sizeof *chunk);
  if (chunk) {
    uint32_t n = (uint32_t)FIRST_CHUNK << k, base = n - FIRST_CHUNK;
    for (uint32_t i = 1; i + 1 < n; i++)
      atomic_store_explicit(&chunk[i].next, base + i + 2, memory_order_relaxed);
    atomic_store(&chunks[k], chunk);
    push_free(base + 1, &chunk[n - 1]);
    s = chunk, *index = base;
  }
  pthread_mutex_unlock(&grow_lock);
  return s;
}

/* The last reference to a retired slot is gone: the slot gets its next generation, then the object goes. */
static void finish(slot *s, uint32_t index) {
  void *object = s->object;
  void (*destroy)(void *) = s->destroy;
  s->object = NULL;
  uint64_t generation = (atomic_load_explicit(&s->state, memory_order_relaxed) >> 32) + 1;
  atomic_store_explicit(&s->state, (generation & UINT32_MAX) << 32, memory_order_relaxed);
  if (generation <= UINT32_MAX) /* else every generation was used: the slot rests, so that no handle ever comes twice */
    push_free(index, s);
  if (destroy)
    destroy(object);
}

void *nr_handle_new_known(nr_handle_kind kind, void *object, void (*destroy)(void *object), void **self) {
  uint32_t index;
  slot *s = take_slot(&index);
  if (!s)
    return NULL;
  s->object = object;
  s->destroy = destroy;
  uint64_t state = atomic_load_explicit(&s->state, memory_order_relaxed) | LIVING | (uint64_t)kind << 28;
  void *handle = make_handle(index, state);
  if (self)
    *self = handle;
  atomic_store(&s->state, state); /* sequentially consistent: see nr_context_adopt */
  return handle;
}

void *nr_handle_new(nr_handle_kind kind, void *object, void (*destroy)(void *object)) {
  return nr_handle_new_known(kind, object, destroy, NULL);
}

void *nr_handle_acquire(nr_handle_kind kind, const void *handle) {
  uint64_t wanted;
  slot *s = find(kind, handle, &wanted);
  if (!s)
    return NULL;
  uint64_t state = atomic_load(&s->state);
  do {
    if ((state & ~REFERENCES) != wanted)
      return NULL;
  } while (!atomic_compare_exchange_weak(&s->state, &state, state + 1));
  return s->object;
}

void nr_handle_release(const void *handle) {
  uint32_t index = index_of(handle);
  slot *s = slot_at(index);
  uint64_t before = atomic_fetch_sub(&s->state, 1);
  if ((before & REFERENCES) == 1 && !(before & LIVING))
    finish(s, index);
}

bool nr_handle_retire(nr_handle_kind kind, const void *handle) {
  uint64_t wanted;
  slot *s = find(kind, handle, &wanted);
  if (!s)
    return false;
  uint64_t state = atomic_load(&s->state);
  do {
    if ((state & ~REFERENCES) != wanted)
      return false;
  } while (!atomic_compare_exchange_weak(&s->state, &state, state & ~LIVING));
  if ((state & REFERENCES) == 0)
    finish(s, index_of(handle));
  return true;
}

void *nr_handle_next(nr_handle_kind kind, uint32_t *cursor) {
  for (slot *s; (s = slot_at(*cursor));) {
    uint32_t index = (*cursor)++;
    uint64_t state = atomic_load(&s->state);
    if ((state & LIVING) && (state >> 28 & 7) == (uint64_t)kind)
      return make_handle(index, state);
  }
  return NULL;
}

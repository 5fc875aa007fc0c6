#include "cpu/dispatch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/verbose.h"

typedef struct entry {
  const nr_kernels *kernels;
  bool (*usable)(void);
} entry;

#define KERNELS(isa, condition)                                                                                        \
  static bool usable_##isa(void) { return condition; }
#include "cpu/kernels/kernels.def"
#undef KERNELS

#define KERNELS(isa, condition) {&nr_kernels_##isa, usable_##isa},
static const entry entries[] = {
#include "cpu/kernels/kernels.def"
};
#undef KERNELS

enum { NUM_ENTRIES = sizeof entries / sizeof *entries };

static const entry *find(const char *isa) {
  for (int i = 0; isa && i < NUM_ENTRIES; i++)
    if (strcmp(entries[i].kernels->isa, isa) == 0)
      return &entries[i];
  return NULL;
}

const char *nr_isa(int32_t i) { return i >= 0 && i < NUM_ENTRIES ? entries[i].kernels->isa : NULL; }

int nr_isa_usable(const char *isa) {
  const entry *e = find(isa);
  return e && e->usable();
}

/* The choice is made once: the environment is for starting a program with. */
static const entry *choose(void) {
  static _Atomic(const entry *) chosen;
  const entry *e = atomic_load_explicit(&chosen, memory_order_acquire);
  if (e)
    return e;
  const char *forced = getenv("NORMROPE_ISA");
  const char *why = "the best that this machine can run";
  for (int i = 0; i < NUM_ENTRIES; i++)
    if (entries[i].usable())
      e = &entries[i];
  if (forced && *forced) {
    if (nr_isa_usable(forced)) {
      e = find(forced);
      why = "NORMROPE_ISA";
    } else if (nr_verbose() >= NR_VERBOSE_ERROR) {
      nr_say("NORMROPE_ISA=%s: %s; using %s", forced, find(forced) ? "not usable on this machine" : "unknown",
             e->kernels->isa);
    }
  }
  if (nr_verbose() >= NR_VERBOSE_DISPATCH)
    nr_say("instruction set %s: %s", e->kernels->isa, why);
  atomic_store_explicit(&chosen, e, memory_order_release);
  return e;
}

const char *nr_isa_default(void) { return choose()->kernels->isa; }

nr_status nr_dispatch(const char *isa, const nr_kernels **kernels) {
  const entry *e = isa ? find(isa) : choose();
  if (!e)
    return nr_fail(NR_ERROR_INVALID, "isa: \"%s\", expected a name that nr_isa() lists", isa);
  if (!e->usable())
    return nr_fail(NR_ERROR_UNSUPPORTED, "isa: %s, which this machine cannot run", isa);
  *kernels = e->kernels;
  return NR_OK;
}

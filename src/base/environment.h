/* The floating-point environment that results are made in. A program may flush subnormals, round otherwise or trap;
   results must not depend on it. */
#ifndef NR_BASE_ENVIRONMENT_H
#define NR_BASE_ENVIRONMENT_H

#include <fenv.h>

/* Puts the calling thread into the default environment; *theirs is what it was in, for nr_environment_leave. */
static inline void nr_environment_enter(fenv_t *theirs) {
  fegetenv(theirs);
  fesetenv(FE_DFL_ENV);
#if defined(__aarch64__)
  __asm__ volatile("msr fpcr, xzr"); /* of which FE_DFL_ENV leaves the format of halves as it was */
#endif
}

static inline void nr_environment_leave(const fenv_t *theirs) { fesetenv(theirs); }

#endif

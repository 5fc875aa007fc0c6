/* Which kernels run: the list, what this machine can do, and what the environment forces. */
#ifndef NR_CPU_DISPATCH_H
#define NR_CPU_DISPATCH_H

#include "cpu/kernels/kernel.h"

/* The kernels of that name, or, for NULL, of nr_isa_default(). Errors: INVALID for an unknown name, UNSUPPORTED for one
   that this machine cannot run. */
nr_status nr_dispatch(const char *isa, const nr_kernels **kernels);

#endif

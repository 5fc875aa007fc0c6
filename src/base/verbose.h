/* NORMROPE_VERBOSE: what the library says on standard error. Each level includes those before it. */
#ifndef NR_BASE_VERBOSE_H
#define NR_BASE_VERBOSE_H

typedef enum nr_verbosity { NR_QUIET, NR_VERBOSE_ERROR, NR_VERBOSE_DISPATCH, NR_VERBOSE_PROFILE } nr_verbosity;

/* The level asked for: none (the default), error, dispatch (what ran and why) or profile (and how long it took). Read
   from the environment once. */
nr_verbosity nr_verbose(void);

/* One line on standard error, "normrope: " before it and a newline after it. */
void nr_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

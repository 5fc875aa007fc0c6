/* Problems drawn over all that a segment can say. A number stands for the same problem and the same data on every
   machine, so a stored digest of its results means something elsewhere. */
#ifndef NR_TESTS_CASES_H
#define NR_TESTS_CASES_H

#include "support/fixture.h"

enum { CASE_TEXT = 1200 };

/* Problem `number`, 0 and up: one to five small segments with any norm, scope, rope, dtypes, layouts and sharing. Even
   numbers go forward, odd ones backward. `text` becomes one line that says what it is. */
fixture *case_new(uint64_t number, char text[CASE_TEXT]);

/* Problems whose segments are cut into several blocks, with sums over them: as above. */
enum { NUM_LARGE_CASES = 6 };
fixture *large_case_new(int number, char text[CASE_TEXT]);

#endif

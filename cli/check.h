/*
 * Comparing a direction's outputs with the double-precision reference, piece by piece: a piece is a run of positions of
 * one batch of one segment, so that the float64 buffers stay small whatever the case.
 */
#ifndef NR_CLI_CHECK_H
#define NR_CLI_CHECK_H

#include "cli/bounds.h"
#include "cli/case.h"
#include "cli/run.h"

/*
 * Judges every output of the direction that has data against the reference on the case's inputs. verdicts:
 * [NR_MAX_OUTPUTS], by output; their worst_index is an element's place in the output tensor. Returns an exit code: of
 * the run, not of the judgement.
 */
int nr_check_case(const nr_case *c, nr_direction direction, int32_t threads, bool progress, nr_verdict *verdicts,
                  nr_message *message);

#endif

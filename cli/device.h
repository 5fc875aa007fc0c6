/* The devices that commands run on. */
#ifndef NR_CLI_DEVICE_H
#define NR_CLI_DEVICE_H

#include "cli/run.h"

/* What --device takes; the number of them is NR_NUM_DEVICES. */
typedef struct nr_device_name {
  const char *name;
  nr_backend backend;
} nr_device_name;

enum { NR_NUM_DEVICES = 3 };
extern const nr_device_name nr_devices[NR_NUM_DEVICES];

/* The i-th device that programs of the ACL runtime see, "CPU" or a model's name, as NORMROPE_DEVICES orders them; NULL
   past the end. It becomes the current one. */
const char *nr_runtime_device(int i);

/* The first of them that is a CUDA device, or is the CPU; -1: there is none. */
int nr_runtime_find(bool cuda);

/* Why there is no CUDA device to run on, good until the library's next error; NULL where there is one. */
const char *nr_cuda_absent(void);

/* nr_run_segments on the first CUDA device: with copies there of all memory that the segments name. */
int nr_run_on_cuda(const nr_problem *problem, const char *path, nr_message *message);

#endif

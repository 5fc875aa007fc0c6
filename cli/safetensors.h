/*
 * Safetensors files, mapped into memory: u64 length of the header, the header (JSON), then the tensors' bytes. Files to
 * read are untrusted: every size is checked before it is used. Files to write appear under their name when they are
 * complete, and not before.
 *
 * Not thread safe for one container; reading the tensors' data is.
 */
#ifndef NR_CLI_SAFETENSORS_H
#define NR_CLI_SAFETENSORS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/cli.h"
#include "normrope.h"

enum {
  NR_MAX_RANK = 8,
  NR_FOREIGN_DTYPE = -1,            /* a dtype of the format that normrope has no use for, such as I64 */
  NR_MAX_HEADER = 100 * 1000 * 1000 /* bytes, the format's own limit */
};

/* A contiguous array, the last index fastest. */
typedef struct nr_tensor {
  const char *name; /* borrowed: the container's, or the caller's where the caller describes a tensor */
  int dtype;        /* an nr_dtype or NR_FOREIGN_DTYPE */
  int rank;
  int64_t shape[NR_MAX_RANK];
  void *data;  /* aligned to the dtype; read-only memory in a container that was opened. NULL where there is none yet */
  size_t size; /* bytes */
  bool copied; /* data is a copy, because the file has it misaligned */
} nr_tensor;

typedef struct nr_container {
  char *path;
  nr_tensor *tensors;
  size_t num_tensors;
  json_t *metadata; /* object of strings; never NULL in an open container */
  /* private */
  json_t *header;
  void *map;
  size_t map_size;
  char *temporary; /* of a container to write, until it is committed */
} nr_container;

/* Product of the shape, or -1 if it is no int64_t. */
int64_t nr_tensor_elements(const nr_tensor *tensor);

/* Sets size from dtype and shape; false if it overflows. */
bool nr_tensor_measure(nr_tensor *tensor);

/* "[1,10,8,6]" into buffer, cut to fit. Returns buffer. */
const char *nr_tensor_shape(const nr_tensor *tensor, char *buffer, size_t size);

/* The tensor of that name, or NULL. */
const nr_tensor *nr_container_find(const nr_container *container, const char *name);

/* Maps a file for reading and checks all of its header. Returns an exit code; after a failure there is nothing to
   close. */
int nr_container_open(nr_container *container, const char *path, nr_message *message);

/* The same for `size` bytes in memory, which are borrowed. `path` is what messages call them. */
int nr_container_parse(nr_container *container, const void *bytes, size_t size, const char *path, nr_message *message);

/*
 * Creates a file next to `path` with these tensors (name, dtype, shape; copied, in an order that aligns them) and
 * metadata (borrowed until close), all zeros, and maps it for writing. The container's tensors are where to write.
 * Returns an exit code.
 */
int nr_container_create(nr_container *container, const char *path, const nr_tensor *tensors, size_t num_tensors,
                        json_t *metadata, nr_message *message);

/* Gives a created file its name, replacing what had it. Returns an exit code. */
int nr_container_commit(nr_container *container, nr_message *message);

/* Unmaps; a created file that was not committed is gone. */
void nr_container_close(nr_container *container);

/* Lets the system take back memory of the mapped pages inside [data, data + size); their contents stay in the file. */
void nr_container_release(const void *data, size_t size);

/* Refuses an output path that is one of the inputs or no regular file. Returns an exit code. */
int nr_check_output(const char *output, const char *const *inputs, int num_inputs, nr_message *message);

#endif

/* The devices that NORMROPE_DEVICES lets a program see: "cpu", "cuda" for all CUDA devices and "cuda:N" for one of
   them, in the order of the list; without a list the CPU and then all CUDA devices. */
#ifndef NR_ACL_DEVICE_H
#define NR_ACL_DEVICE_H

#include "acl/acl_base.h"

/* At least 1. */
int32_t nr_device_count(void);

/* INVALID_DEVICE, with a text, unless 0 <= device < count. */
aclError nr_device_check(int32_t device);

/* CUDA's number of a device; -1: it is the CPU. */
int32_t nr_device_cuda(int32_t device);

/* Releases all of every device, however often aclrtSetDevice was called. */
void nr_device_release_all(void);

#endif

/* The devices that NORMROPE_DEVICES lets a program see. */
#ifndef NR_ACL_DEVICE_H
#define NR_ACL_DEVICE_H

#include "acl/acl_base.h"

/* At least 1. */
int32_t nr_device_count(void);

/* INVALID_DEVICE, with a text, unless 0 <= device < count. */
aclError nr_device_check(int32_t device);

/* Releases all of every device, however often aclrtSetDevice was called. */
void nr_device_release_all(void);

#endif

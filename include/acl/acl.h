/*
 * The CANN-compatible entry header: initialising, and by inclusion types, error codes and the runtime.
 *
 * A program: aclInit, aclrtSetDevice(0), aclrtCreateStream; aclrtMalloc and aclrtMemcpy; operators of aclnnop/ on the
 * stream; aclrtSynchronizeStream; aclrtDestroyStream, aclrtResetDevice(0), aclFinalize. Device 0 is the processor.
 */
#ifndef NORMROPE_ACL_H
#define NORMROPE_ACL_H

#include "acl/acl_base.h"
#include "acl/acl_rt.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Once a process, or again after aclFinalize. configPath: NULL, "" or a readable file, whose settings do not concern
 * this library. The other functions work without it; aclFinalize does not. Errors: REPEAT_INITIALIZE (still
 * initialised), INVALID_FILE (cannot be read).
 */
ACL_FUNC_VISIBILITY aclError aclInit(const char *configPath);

/*
 * Lets queued work finish, then releases every context, stream, event and block of memory that is left; their handles
 * and addresses are invalid from then on.
 * Errors: UNINITIALIZE (never initialised), REPEAT_FINALIZE (not initialised since the last aclFinalize).
 */
ACL_FUNC_VISIBILITY aclError aclFinalize(void);

#ifdef __cplusplus
}
#endif

#endif

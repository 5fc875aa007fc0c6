#include "aclnn/aclnn_base.h"

aclnnStatus aclnnInit(const char *configPath) {
  (void)configPath;
  return ACLNN_SUCCESS;
}

aclnnStatus aclnnFinalize(void) { return ACLNN_SUCCESS; }

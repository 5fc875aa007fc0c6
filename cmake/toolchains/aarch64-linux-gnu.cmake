# AArch64 by Debian's cross compiler; what is built runs under qemu's user mode. The compiler's own packages have the C
# library, and scripts/setup-aarch64.sh unpacks the others into a folder of the build.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(NR_PACKAGES ${CMAKE_CURRENT_LIST_DIR}/../../build/aarch64-packages)
cmake_path(NORMAL_PATH NR_PACKAGES)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu ${NR_PACKAGES}/usr)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${NR_PACKAGES})
set(ENV{PKG_CONFIG_LIBDIR} ${NR_PACKAGES}/usr/lib/aarch64-linux-gnu/pkgconfig)

find_program(NR_QEMU NAMES qemu-aarch64 qemu-aarch64-static REQUIRED)
set(CMAKE_CROSSCOMPILING_EMULATOR ${NR_QEMU} -L ${NR_PACKAGES})

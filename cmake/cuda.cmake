# The CUDA backend, by NORMROPE_CUDA: adds to NR_SOURCES and sets NR_CUDA_INCLUDES, NR_CUDA_LIBRARIES and, for who links
# the installed static library, NR_CUDA_STATIC (names and paths). The CUDA runtime is linked statically and finds the
# driver when a program first asks for a device, so the library runs where there is none.
set(NR_CUDA_INCLUDES "")
set(NR_CUDA_LIBRARIES "")
set(NR_CUDA_STATIC "")
set(NR_CUDA_BACKEND OFF)
if(NORMROPE_CUDA STREQUAL "SHIM")
  set(NR_CUDA_BACKEND SHIM)
elseif(NORMROPE_CUDA STREQUAL "OFF")
  set(NR_CUDA_BACKEND OFF)
elseif(NORMROPE_CUDA MATCHES "^(AUTO|ON)$")
  find_program(NORMROPE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)
  set(NR_CUDA_VERSION 0)
  if(NORMROPE_NVCC)
    execute_process(COMMAND ${NORMROPE_NVCC} --version OUTPUT_VARIABLE text)
    if(text MATCHES "release ([0-9]+\\.[0-9]+)")
      set(NR_CUDA_VERSION ${CMAKE_MATCH_1})
    endif()
  endif()
  # Kernels' parameters of more than 4 KB are what needs 12.1.
  if(NORMROPE_NVCC AND NOT CMAKE_CROSSCOMPILING AND NR_CUDA_VERSION VERSION_GREATER_EQUAL 12.1)
    set(CMAKE_CUDA_COMPILER ${NORMROPE_NVCC})
    set(NR_CUDA_BACKEND ON)
  elseif(NORMROPE_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "NORMROPE_CUDA=ON: no nvcc of CUDA 12.1 or later was found; name it by -DNORMROPE_NVCC=/path/to/nvcc")
  endif()
else()
  message(FATAL_ERROR "NORMROPE_CUDA=${NORMROPE_CUDA}: expected AUTO, ON, OFF or SHIM")
endif()

if(NR_CUDA_BACKEND STREQUAL "OFF")
  list(APPEND NR_SOURCES cuda/absent.c)
else()
  file(GLOB NR_CUDA_KERNELS CONFIGURE_DEPENDS cuda/*.cu)
  list(APPEND NR_SOURCES cuda/cuda.c cuda/runtime.c ${NR_CUDA_KERNELS})
endif()

if(NR_CUDA_BACKEND STREQUAL "ON")
  # Of these the driver compiles the last for devices that come later.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(NR_CUDA_INCLUDES ${CUDAToolkit_INCLUDE_DIRS})
  set(NR_CUDA_LIBRARIES CUDA::cudart_static)
  set(NR_CUDA_STATIC ${CUDA_cudart_static_LIBRARY} rt dl)
  set(CMAKE_CUDA_IMPLICIT_LINK_LIBRARIES "") # kernels need no C++ library
elseif(NR_CUDA_BACKEND STREQUAL "SHIM")
  set(CMAKE_CXX_VISIBILITY_PRESET hidden)
  enable_language(CXX)
  set(NR_CUDA_INCLUDES ${PROJECT_SOURCE_DIR}/tests/cuda_shim)
  list(APPEND NR_SOURCES ${PROJECT_SOURCE_DIR}/tests/cuda_shim/shim.cpp)
  set_source_files_properties(${NR_CUDA_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
    "-xc++;-std=c++17;-Wno-unknown-pragmas;-Wno-shadow;--coverage")
  set(NR_CUDA_STATIC gcov stdc++)
  set(NR_CUDA_LIBRARIES gcov) # counts lines: tests/check_cuda_coverage.sh
endif()
set(NR_CUDA_BACKEND ${NR_CUDA_BACKEND} PARENT_SCOPE) # the tests ask
set(NR_CUDA_INCLUDES ${NR_CUDA_INCLUDES} PARENT_SCOPE)
message(STATUS "CUDA backend: ${NR_CUDA_BACKEND}")

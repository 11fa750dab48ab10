# A toolchain file for the machine ZMALLOC_MACHINE, a triplet such as s390x-linux-gnu, as Debian's cross compilers are
# named. With -DCMAKE_C_COMPILER=clang, clang takes their place and has their libraries.

set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZMALLOC_MACHINE)
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR ${ZMALLOC_MACHINE})

if(CMAKE_C_COMPILER MATCHES "clang")
    set(CMAKE_C_COMPILER_TARGET ${ZMALLOC_MACHINE})
    set(CMAKE_CXX_COMPILER_TARGET ${ZMALLOC_MACHINE})
else()
    set(CMAKE_C_COMPILER ${ZMALLOC_MACHINE}-gcc)
    find_program(MACHINE_CXX ${ZMALLOC_MACHINE}-g++) # musl has none
    set(CMAKE_CXX_COMPILER ${MACHINE_CXX})
endif()

set(root /usr/${ZMALLOC_MACHINE})
set(CMAKE_FIND_ROOT_PATH ${root})
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)

# This machine runs i686's programs, but has no loader for them where they look for it. For the others there is qemu.
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "i686")
    set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,--dynamic-linker=${root}/lib/ld-linux.so.2,-rpath=${root}/lib")
elseif(NOT CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
    set(CMAKE_CROSSCOMPILING_EMULATOR qemu-${CMAKE_SYSTEM_PROCESSOR} -L ${root})
endif()

# Debian packages, made by `cpack` or the target `package`: docs/releasing.md has the commands. What Debian wants of
# their files is done in debian-finish.cmake.

set(CPACK_GENERATOR DEB)
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_PACKAGE_VENDOR "The zmalloc authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "allocator for servers that counts every byte")
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_RESOURCE_FILE_README ${PROJECT_SOURCE_DIR}/README.md)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/debian-finish.cmake)
set(CPACK_POST_BUILD_SCRIPTS ${CPACK_PRE_BUILD_SCRIPTS})

# As for Debian's own tools, whoever makes a package is its maintainer.
set(CPACK_DEBIAN_PACKAGE_MAINTAINER "${CPACK_PACKAGE_VENDOR} <root@localhost>")
if(DEFINED ENV{DEBFULLNAME} AND DEFINED ENV{DEBEMAIL})
    set(CPACK_DEBIAN_PACKAGE_MAINTAINER "$ENV{DEBFULLNAME} <$ENV{DEBEMAIL}>")
endif()
set(CPACK_DEBIAN_PACKAGE_SOURCE zmalloc)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL zmalloc_development)
set(description
"Every block that a program takes through this library is counted, so that
the program can say at any moment how much memory it uses, cap it, learn
its peak, and decide for itself what happens when memory runs out.
The blocks come from ${backend}.
.
This package has")

set(CPACK_COMPONENT_ZMALLOC_RUNTIME_DESCRIPTION "${description} the shared library.")
set(CPACK_DEBIAN_ZMALLOC_RUNTIME_PACKAGE_NAME libzmalloc${soversion})
set(CPACK_DEBIAN_ZMALLOC_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_ZMALLOC_RUNTIME_PACKAGE_SHLIBDEPS ON)
# Where dpkg-shlibdeps finds the library that another one of this build is linked with.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${PROJECT_BINARY_DIR})
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS_POLICY ">=")

set(CPACK_COMPONENT_ZMALLOC_ZMRUN_DESCRIPTION
"Runs a program as it is, with its malloc() on zmalloc, and says what it did
with memory: its peak, what is used at the end, and failures, as a text, JSON,
a page or metrics. It can cap what the program may allocate, and have
allocations fail.")
set(CPACK_DEBIAN_ZMALLOC_ZMRUN_PACKAGE_NAME zmrun)
set(CPACK_DEBIAN_ZMALLOC_ZMRUN_DESCRIPTION_SUMMARY "runs programs with their memory on an account")
set(CPACK_DEBIAN_ZMALLOC_ZMRUN_PACKAGE_SECTION devel)
set(CPACK_DEBIAN_ZMALLOC_ZMRUN_PACKAGE_SHLIBDEPS ON)

set(CPACK_COMPONENT_ZMALLOC_PROFILE_RUNTIME_DESCRIPTION "${description} its profile: which code holds the memory.")
set(CPACK_DEBIAN_ZMALLOC_PROFILE_RUNTIME_PACKAGE_NAME libzmalloc-profile${soversion})
set(CPACK_DEBIAN_ZMALLOC_PROFILE_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_ZMALLOC_PROFILE_RUNTIME_PACKAGE_SHLIBDEPS ON)

set(CPACK_COMPONENT_ZMALLOC_DEVELOPMENT_DESCRIPTION "${description} what it takes to build programs with it.")
set(CPACK_DEBIAN_ZMALLOC_DEVELOPMENT_PACKAGE_NAME libzmalloc-dev)
set(CPACK_DEBIAN_ZMALLOC_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(depends ${backend_package} ${profile_packages}) # for the static libraries
if(BUILD_SHARED_LIBS OR ZMALLOC_BUILD_BOTH)
    list(APPEND CPACK_COMPONENTS_ALL zmalloc_runtime zmalloc_profile_runtime)
    set(this_version "(= ${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE})")
    list(PREPEND depends "libzmalloc${soversion} ${this_version}" "libzmalloc-profile${soversion} ${this_version}")
    set(CPACK_DEBIAN_ZMALLOC_PROFILE_RUNTIME_PACKAGE_DEPENDS "libzmalloc${soversion} ${this_version}")
endif()
if(TARGET zmrun)
    list(APPEND CPACK_COMPONENTS_ALL zmalloc_zmrun)
endif()
list(JOIN depends ", " CPACK_DEBIAN_ZMALLOC_DEVELOPMENT_PACKAGE_DEPENDS)

include(CPack)

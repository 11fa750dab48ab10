# Only the library counts what it runs, so that its tests are compiled once for all backends (ccache).
cmake_language(DEFER CALL target_compile_options zmalloc PRIVATE --coverage -fprofile-update=atomic)

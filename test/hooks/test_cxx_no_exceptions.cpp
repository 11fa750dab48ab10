// The allocator in code that is compiled without exceptions.

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>

#include <csignal>
#include <cstdio>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "zmalloc_hooks.h"

// Last, because it has a macro named fail.
extern "C" {
#include <cmocka.h>
}

namespace
{

using counted_vector = std::vector<int, zmalloc_allocator<int>>;

void containers_are_counted(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        counted_vector numbers(1000);
        assert_true(zmalloc_used_memory() >= used + 1000 * sizeof(int));
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void failure_ends_the_program(void **)
{
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        if (freopen("/dev/null", "w", stderr) == nullptr) // where it is written that this happens
            _exit(2);
        zmalloc_fail_after(1);
        counted_vector numbers(1000);
        _exit(numbers.size() == 1000);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(containers_are_counted),
        cmocka_unit_test(failure_ends_the_program),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

// zmalloc.h from C++: it compiles, links, and by the allocator of zmalloc_hooks.h serves containers.

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>

#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "zmalloc.h"
#include "zmalloc_hooks.h"

// Last, because it has a macro named fail.
extern "C" {
#include <cmocka.h>
}

namespace
{

template <typename T> using counted_vector = std::vector<T, zmalloc_allocator<T>>;
using counted_string = std::basic_string<char, std::char_traits<char>, zmalloc_allocator<char>>;
using counted_map =
    std::map<int, counted_string, std::less<int>, zmalloc_allocator<std::pair<const int, counted_string>>>;

struct alignas(256) wide {
    unsigned char bytes[300];
};

void containers_are_counted(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        counted_vector<int> numbers(100000);
        assert_true(zmalloc_used_memory() >= used + numbers.size() * sizeof(int));
        counted_map names;
        for (int i = 0; i < 1000; i++)
            names[i] = counted_string(static_cast<std::size_t>(i), 'n');
        assert_true(zmalloc_used_memory() >= used + numbers.size() * sizeof(int) + 999 * 1000 / 2);
        assert_int_equal(names[999].size(), 999);
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void over_aligned_types_are_aligned(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        counted_vector<wide> blocks(10);
        for (wide &block : blocks)
            assert_int_equal(reinterpret_cast<std::uintptr_t>(&block) % alignof(wide), 0);
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void failure_becomes_bad_alloc(void **)
{
    const std::size_t used = zmalloc_used_memory();
    bool thrown = false;
    zmalloc_fail_after(1);
    try {
        counted_vector<int> numbers(1000);
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    zmalloc_inject_faults(nullptr);
    assert_true(thrown);
    assert_int_equal(zmalloc_used_memory(), used);
}

struct release {
    void operator()(void *p) const
    {
        zfree(p);
    }
};

void blocks_may_be_owned_by_unique_ptr(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        std::unique_ptr<char, release> copy(zstrdup("owned"));
        assert_string_equal(copy.get(), "owned");
        assert_true(zmalloc_used_memory() > used);
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

// zcalloc is a macro for another name: as a function and as a pointer it works all the same.
void zcalloc_is_callable_and_has_an_address(void **)
{
    void *(*const allocate)(std::size_t) = zcalloc;
    for (void *p : {zcalloc(100), allocate(100)}) {
        assert_non_null(p);
        assert_int_equal(static_cast<char *>(p)[99], 0);
        zfree(p);
    }
}

void count_event(const zmalloc_oom *event, void *ctx)
{
    assert_int_equal(event->reason, ZMALLOC_REASON_OVERFLOW);
    assert_int_equal(event->operation, ZMALLOC_OPERATION_ALLOCATE);
    ++*static_cast<int *>(ctx);
}

void callbacks_are_called(void **)
{
    int calls = 0;
    void *before = &calls;
    assert_true(zmalloc_set_oom_callback(count_event, &calls, &before) == nullptr);
    assert_null(before);
    volatile std::size_t too_much = std::numeric_limits<std::size_t>::max(); // which compilers warn of
    void *p = zmalloc(too_much);
    assert_null(p);
    assert_int_equal(calls, 1);
    zmalloc_set_oom_callback(nullptr, nullptr, nullptr);
}

void the_snapshot_is_filled(void **)
{
    zmalloc_stats stats;
    stats.struct_size = sizeof stats;
    assert_int_equal(zmalloc_get_stats(&stats), 0);
    assert_int_equal(stats.used, zmalloc_used_memory());
    assert_true(std::strlen(ZMALLOC_LIB) > 0);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(containers_are_counted),
        cmocka_unit_test(over_aligned_types_are_aligned),
        cmocka_unit_test(failure_becomes_bad_alloc),
        cmocka_unit_test(blocks_may_be_owned_by_unique_ptr),
        cmocka_unit_test(zcalloc_is_callable_and_has_an_address),
        cmocka_unit_test(callbacks_are_called),
        cmocka_unit_test(the_snapshot_is_filled),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

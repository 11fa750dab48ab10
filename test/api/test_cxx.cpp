// zmalloc.h from C++: it compiles, links, and by the allocator of zmalloc_hooks.h serves containers. Handlers may throw.

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
    void operator()(void *p) const { zfree(p); }
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

// ---------------------------------------------------------------- handlers that throw

bool says_before; // a handler that leaves says so before, else whoever it leaves to says so after
int handled, destroyed;

struct out_of_memory {
    std::size_t size;
};

[[noreturn]] void leave(std::size_t size)
{
    handled++;
    if (says_before)
        zmalloc_leave_handler();
    throw out_of_memory{size};
}

void throw_from_handler(std::size_t size) { leave(size); }

void throw_from_callback(const zmalloc_oom *event, void *) { leave(event->size); }

int throw_from_reclaim(std::size_t needed, void *) { leave(needed); }

// Its destructor uses the library while the exception is on its way.
struct guard {
    void *block = zmalloc(100);

    guard() = default;
    guard(const guard &) = delete;
    guard &operator=(const guard &) = delete;
    ~guard()
    {
        zfree(ztrymalloc(50));
        zfree(block);
        destroyed++;
    }
};

using call = void *(*)(void *old, std::size_t n);

// Everything that may call a handler.
const call calls[] = {
    [](void *, std::size_t n) { return zmalloc(n); },
    [](void *, std::size_t n) { return zcalloc(n); },
    [](void *, std::size_t n) { return zcalloc_num(1, n); },
    [](void *old, std::size_t n) { return zrealloc(old, n); },
    [](void *old, std::size_t n) { return zreallocarray(old, 1, n); },
    [](void *, std::size_t n) { return zaligned_alloc(4096, n); },
    [](void *old, std::size_t n) { return zmemdup(old, n); },
    [](void *, std::size_t n) { return zmalloc_usable(n, nullptr); },
    [](void *, std::size_t n) { return zcalloc_usable(n, nullptr); },
    [](void *old, std::size_t n) { return zrealloc_usable(old, n, nullptr); },
    [](void *, std::size_t n) { return zmalloc_with_flags(n, 0); },
    [](void *old, std::size_t n) { return zrealloc_with_flags(old, n, 0); },
    [](void *, std::size_t n) { return zmalloc_no_tcache(n); },
};

__attribute__((noinline)) void *call_deep(int depth, call function, void *old, std::size_t n)
{
    const guard here;
    void *volatile p = depth == 0 ? function(old, n) : call_deep(depth - 1, function, old, n);
    return p;
}

// The exception arrives, and is out of all the frames in between.
void expect_exception(int depth, call function, void *old, std::size_t n)
{
    std::size_t told = 0;
    handled = destroyed = 0;
    try {
        zfree(call_deep(depth, function, old, n));
    } catch (const out_of_memory &exception) {
        told = exception.size;
        if (!says_before)
            zmalloc_leave_handler();
    }
    assert_int_equal(told, n);
    assert_int_equal(handled, 1);
    assert_int_equal(destroyed, depth + 1);
}

void expect_exceptions()
{
    const std::size_t used = zmalloc_used_memory();
    char *old = static_cast<char *>(zmemdup("kept", 5));
    assert_non_null(old);
    const std::size_t with_old = zmalloc_used_memory();
    for (const bool before : {true, false}) {
        says_before = before;
        for (const call function : calls) {
            for (const int depth : {0, 20, 3, 100, 0}) {
                volatile std::size_t beyond = PTRDIFF_MAX / 2; // more than any backend has
                expect_exception(depth, function, old, beyond);
                zmalloc_faults faults = zmalloc_faults();
                faults.after = 1;
                faults.min_size = faults.max_size = 77777;
                zmalloc_inject_faults(&faults);
                if (function != calls[6]) // which copies what is not there
                    expect_exception(depth, function, old, 77777);
                zmalloc_inject_faults(nullptr);
                assert_string_equal(old, "kept");
                assert_int_equal(zmalloc_used_memory(), with_old);
            }
        }
    }
    zfree(old);
    assert_int_equal(zmalloc_used_memory(), used);
}

void handlers_may_throw(void **)
{
    zmalloc_set_oom_handler(throw_from_handler);
    expect_exceptions();
    zmalloc_set_oom_callback(throw_from_callback, nullptr, nullptr);
    expect_exceptions();
    zmalloc_set_oom_callback(nullptr, nullptr, nullptr);
    zmalloc_set_oom_handler(nullptr);
    zmalloc_set_reclaim_handler(throw_from_reclaim, nullptr, nullptr);
    expect_exceptions();
    zmalloc_set_reclaim_handler(nullptr, nullptr, nullptr);
}

void reclaim_may_throw_out_of_calls_that_try(void **)
{
    const std::size_t used = zmalloc_used_memory();
    says_before = true;
    zmalloc_set_reclaim_handler(throw_from_reclaim, nullptr, nullptr);
    zmalloc_set_limit(used + 1000000);
    expect_exception(
        1, [](void *, std::size_t n) { return ztrymalloc(n); }, nullptr, 2000000);
    expect_exception(
        1,
        [](void *, std::size_t n) -> void * {
            assert_int_equal(zmalloc_charge_external(n), 0);
            return nullptr;
        },
        nullptr, 2000000);
    zmalloc_set_limit(0);
    zmalloc_set_reclaim_handler(nullptr, nullptr, nullptr);
    assert_int_equal(zmalloc_used_memory(), used);
}

void an_exception_that_a_handler_catches_itself_stays_inside(void **)
{
    zmalloc_set_oom_handler([](std::size_t size) {
        handled++;
        try {
            throw out_of_memory{size};
        } catch (const out_of_memory &) {
        }
        void *p = zmalloc(size); // fails without a handler
        assert_null(p);
    });
    volatile std::size_t too_much = std::numeric_limits<std::size_t>::max();
    handled = 0;
    for (int i = 1; i <= 3; i++) {
        void *p = zmalloc(too_much);
        assert_null(p);
        assert_int_equal(handled, i);
    }
    zmalloc_set_oom_handler(nullptr);
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
        cmocka_unit_test(handlers_may_throw),
        cmocka_unit_test(reclaim_may_throw_out_of_calls_that_try),
        cmocka_unit_test(an_exception_that_a_handler_catches_itself_stays_inside),
        cmocka_unit_test(the_snapshot_is_filled),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

// The allocator for the standard containers, and with C++17 the memory resource.

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>

#include <deque>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#if __cplusplus >= 201703L
#include <memory_resource>
#endif

#include "zmalloc_hooks.h"

// Last, because it has a macro named fail.
extern "C" {
#include <cmocka.h>
}

#include "../sweep.h"

namespace
{

template <typename T> using counted_vector = std::vector<T, zmalloc_allocator<T>>;
template <typename T> using counted_deque = std::deque<T, zmalloc_allocator<T>>;
template <typename T> using counted_list = std::list<T, zmalloc_allocator<T>>;
using counted_string = std::basic_string<char, std::char_traits<char>, zmalloc_allocator<char>>;
template <typename K, typename V>
using counted_map = std::map<K, V, std::less<K>, zmalloc_allocator<std::pair<const K, V>>>;
template <typename K, typename V>
using counted_unordered_map =
    std::unordered_map<K, V, std::hash<K>, std::equal_to<K>, zmalloc_allocator<std::pair<const K, V>>>;

const char text[] = "longer than what a string keeps within itself";

template <std::size_t alignment> struct alignas(alignment) aligned {
    unsigned char bytes[alignment + 1];

    bool is_aligned() const { return reinterpret_cast<std::uintptr_t>(this) % alignment == 0; }
};

// ---------------------------------------------------------------- what is counted

void containers_are_counted_and_come_back_to_the_start(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        counted_vector<int> numbers(100000, 1);
        counted_deque<int> queue(numbers.begin(), numbers.end());
        counted_list<int> list(numbers.begin(), numbers.begin() + 1000);
        counted_map<int, counted_string> names;
        counted_unordered_map<int, counted_vector<int>> groups;
        for (int i = 0; i < 1000; i++) {
            names[i] = text;
            groups[i % 100].push_back(i);
        }
        const std::size_t payload = (2 * 100000 + 1000 + 1000) * sizeof(int) + 1000 * sizeof text;
        assert_true(zmalloc_used_memory() >= used + payload);
        assert_true(names[999] == text && groups[99].size() == 10 && queue.size() == numbers.size());
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void moved_copied_and_swapped_containers_free_what_they_have(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        counted_map<int, counted_string> one, other;
        for (int i = 0; i < 100; i++)
            one[i] = text;
        counted_map<int, counted_string> copy(one);
        const std::size_t with_copy = zmalloc_used_memory();
        other = std::move(one); // takes the nodes over
        assert_int_equal(zmalloc_used_memory(), with_copy);
        copy.erase(copy.begin(), copy.find(50));
        copy.swap(other);
        assert_true(copy.size() == 100 && other.size() == 50);
        other = copy;
        assert_true(other == copy);
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void shared_objects_are_counted_with_their_control_block(void **)
{
    const std::size_t used = zmalloc_used_memory();
    std::weak_ptr<aligned<64>> observer;
    {
        auto object = std::allocate_shared<aligned<64>>(zmalloc_allocator<aligned<64>>());
        assert_true(object->is_aligned());
        assert_true(zmalloc_used_memory() >= used + sizeof(aligned<64>));
        observer = object;
        auto second = object;
    }
    assert_true(observer.expired());
    observer.reset(); // the last to know the block
    assert_int_equal(zmalloc_used_memory(), used);
}

template <typename T> void are_aligned()
{
    const std::size_t used = zmalloc_used_memory();
    {
        counted_vector<T> vector(5);
        counted_list<T> list(5);
        counted_map<int, T> map;
        for (int i = 0; i < 5; i++)
            map[i] = vector[0];
        for (const T &element : vector)
            assert_true(element.is_aligned());
        for (const T &element : list)
            assert_true(element.is_aligned());
        for (const auto &element : map)
            assert_true(element.second.is_aligned());
        assert_true(zmalloc_used_memory() >= used + 15 * sizeof(T));
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void types_have_their_alignment(void **)
{
    are_aligned<aligned<1>>();
    are_aligned<aligned<alignof(std::max_align_t)>>();
    are_aligned<aligned<2 * alignof(std::max_align_t)>>();
    are_aligned<aligned<4096>>();
}

void no_elements_are_a_block_too(void **)
{
    const std::size_t used = zmalloc_used_memory();
    zmalloc_allocator<int> allocator;
    int *one = allocator.allocate(0), *other = allocator.allocate(0);
    assert_true(one != nullptr && other != nullptr && one != other);
    allocator.deallocate(one, 0);
    allocator.deallocate(other, 0);
    assert_int_equal(zmalloc_used_memory(), used);
}

void one_allocator_frees_what_another_allocated(void **)
{
    const zmalloc_allocator<int> one;
    zmalloc_allocator<char> other(one);
    assert_true(one == other);
    assert_false(one != other);
    std::allocator_traits<zmalloc_allocator<char>>::rebind_alloc<int> third(other);
    const std::size_t used = zmalloc_used_memory();
    int *p = zmalloc_allocator<int>(one).allocate(10);
    third.deallocate(p, 10);
    assert_int_equal(zmalloc_used_memory(), used);
}

// ---------------------------------------------------------------- when memory runs out

// Fails the 1st, 2nd, 3rd ... allocation of the operation, alone or with all after it, until it succeeds. Returns how
// many there were.
template <typename Container, typename Operation>
std::size_t failures_leave_it_unchanged(const Container &start, int persistent, Operation operation)
{
    for (std::size_t n = 1;; n++) {
        Container container(start);
        const std::size_t used = zmalloc_used_memory();
        bool thrown = false;
        const std::size_t point = point_begin(n, persistent);
        try {
            operation(container);
        } catch (const std::bad_alloc &) {
            thrown = true;
        }
        const std::size_t injected = point_end(point);
        assert_true(injected != SIZE_MAX);
        assert_int_equal(injected != 0, thrown);
        if (!thrown) {
            assert_true(container != start);
            return n - 1;
        }
        assert_true(container == start);
        assert_int_equal(zmalloc_used_memory(), used);
    }
}

// What the standard promises for one more element, whatever the size before, so that some have to grow their table.
// Returns how many failing points there were.
template <typename Container, typename Operation> std::size_t grows_or_stays(Container container, Operation operation)
{
    std::size_t failures = 0;
    for (int i = 0; i < 40; i++) {
        failures += failures_leave_it_unchanged(container, 0, operation);
        failures += failures_leave_it_unchanged(container, 1, operation);
        operation(container);
    }
    assert_true(failures > 2);
    return failures;
}

void a_failed_insertion_leaves_the_container_as_it_was(void **)
{
    const std::size_t used = zmalloc_used_memory();
    std::size_t points = 0;
    points += grows_or_stays(counted_vector<counted_string>(),
                             [](counted_vector<counted_string> &vector) { vector.push_back(text); });
    points += grows_or_stays(counted_deque<counted_string>(),
                             [](counted_deque<counted_string> &deque) { deque.push_front(text); });
    points += grows_or_stays(counted_list<counted_string>(),
                             [](counted_list<counted_string> &list) { list.push_back(text); });
    points += grows_or_stays(counted_string(), [](counted_string &string) { string.append(text); });
    points += grows_or_stays(counted_map<std::size_t, counted_string>(),
                             [](counted_map<std::size_t, counted_string> &map) { map.emplace(map.size(), text); });
    points +=
        grows_or_stays(counted_unordered_map<std::size_t, counted_string>(),
                       [](counted_unordered_map<std::size_t, counted_string> &map) { map.emplace(map.size(), text); });
    assert_int_equal(zmalloc_used_memory(), used);
    tell_failing_points(points, "zmalloc_allocator");
}

template <typename Exception> bool throws(std::size_t count)
{
    try {
        zmalloc_allocator<int> allocator;
        allocator.deallocate(allocator.allocate(count), count);
    } catch (const Exception &) {
        return true;
    } catch (...) {
    }
    return false;
}

void a_number_of_elements_that_overflows_is_told_from_want_of_memory(void **)
{
    volatile std::size_t most = std::numeric_limits<std::size_t>::max() / sizeof(int); // compilers warn of such calls
    assert_true(throws<std::bad_array_new_length>(most + 1));
    assert_true(throws<std::bad_alloc>(most + 1));
    assert_true(throws<std::bad_alloc>(most));
    assert_false(throws<std::bad_array_new_length>(most));
    assert_false(throws<std::bad_alloc>(1));
}

int give_up_ballast(std::size_t, void *ctx)
{
    void *&ballast = *static_cast<void **>(ctx);
    const int again = ballast != nullptr;
    zfree(ballast);
    ballast = nullptr;
    return again;
}

void the_reclaim_handler_is_asked_first(void **)
{
    const std::size_t used = zmalloc_used_memory();
    void *ballast = zmalloc(100000);
    zmalloc_set_reclaim_handler(give_up_ballast, &ballast, nullptr);
    zmalloc_set_limit(zmalloc_used_memory() + 1000);
    {
        counted_vector<char> vector(50000);
        assert_null(ballast);
        bool thrown = false;
        try {
            vector.resize(200000);
        } catch (const std::bad_alloc &) {
            thrown = true;
        }
        assert_true(thrown && vector.size() == 50000);
    }
    zmalloc_set_limit(0);
    zmalloc_set_reclaim_handler(nullptr, nullptr, nullptr);
    assert_int_equal(zmalloc_used_memory(), used);
}

// ---------------------------------------------------------------- C++17

#if __cplusplus >= 201703L

void containers_of_the_resource_are_counted(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        std::pmr::vector<std::pmr::string> strings(zmalloc_resource());
        std::pmr::unordered_map<int, std::pmr::string> names(zmalloc_resource());
        for (int i = 0; i < 1000; i++) {
            strings.emplace_back(text); // which takes after the vector
            names.emplace(i, text);
        }
        assert_true(zmalloc_used_memory() >= used + 2000 * sizeof text);
        assert_true(names.at(999) == text && strings.back() == text);
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void other_resources_may_stand_on_it(void **)
{
    const std::size_t used = zmalloc_used_memory();
    {
        std::pmr::unsynchronized_pool_resource pool(zmalloc_resource());
        std::pmr::monotonic_buffer_resource buffer(&pool);
        std::pmr::list<int> list(&buffer);
        for (int i = 0; i < 10000; i++)
            list.push_back(i);
        assert_true(zmalloc_used_memory() >= used + 10000 * sizeof(int));
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void the_resource_aligns(void **)
{
    const std::size_t used = zmalloc_used_memory();
    for (std::size_t alignment = 1; alignment <= 65536; alignment *= 2) {
        for (std::size_t n : {std::size_t{0}, std::size_t{1}, alignment, 3 * alignment + 1}) {
            void *p = zmalloc_resource()->allocate(n, alignment);
            assert_int_equal(reinterpret_cast<std::uintptr_t>(p) % alignment, 0);
            assert_true(zmalloc_used_memory() >= used + n);
            zmalloc_resource()->deallocate(p, n, alignment);
        }
    }
    assert_int_equal(zmalloc_used_memory(), used);
}

void there_is_one_resource(void **)
{
    assert_true(*zmalloc_resource() == *zmalloc_resource());
    assert_false(*zmalloc_resource() == *std::pmr::new_delete_resource());
    std::pmr::memory_resource *before = std::pmr::set_default_resource(zmalloc_resource());
    const std::size_t used = zmalloc_used_memory();
    {
        std::pmr::vector<int> numbers(1000);
        assert_true(zmalloc_used_memory() >= used + 1000 * sizeof(int));
    }
    std::pmr::set_default_resource(before);
    assert_int_equal(zmalloc_used_memory(), used);
}

void a_failed_insertion_leaves_the_resources_container_as_it_was(void **)
{
    // A copy of a container of this kind has the default resource.
    std::pmr::memory_resource *before = std::pmr::set_default_resource(zmalloc_resource());
    std::size_t points = 0;
    points += grows_or_stays(std::pmr::vector<std::pmr::string>(),
                             [](std::pmr::vector<std::pmr::string> &vector) { vector.emplace_back(text); });
    points += grows_or_stays(std::pmr::map<std::size_t, std::pmr::string>(),
                             [](std::pmr::map<std::size_t, std::pmr::string> &map) { map.emplace(map.size(), text); });
    std::pmr::set_default_resource(before);
    tell_failing_points(points, "zmalloc_resource()");
}

#endif

// ---------------------------------------------------------------- accounts

// Of an account that could not be created: nothing.
std::size_t used_in(zmalloc_account *account)
{
    zmalloc_account_stats now;
    now.struct_size = sizeof now;
    return account != nullptr && zmalloc_get_account_stats(account, &now) == 0 ? now.used : 0;
}

struct accounts {
    zmalloc_account *a = zmalloc_account_create("a", nullptr), *b = zmalloc_account_create("b", nullptr);

    ~accounts() { assert_true(a == nullptr || (zmalloc_account_remove(a) == 0 && zmalloc_account_remove(b) == 0)); }
};

void a_scope_ends_where_it_began(void **)
{
    const accounts both;
    {
        const zmalloc_account_scope scope(both.a);
        assert_ptr_equal(zmalloc_current_account(), both.a);
        try {
            const zmalloc_account_scope inner(both.b);
            assert_ptr_equal(zmalloc_current_account(), both.b);
            throw 1;
        } catch (int) {
            assert_ptr_equal(zmalloc_current_account(), both.a);
        }
        const zmalloc_account_scope none(nullptr);
        assert_null(zmalloc_current_account());
    }
    assert_null(zmalloc_current_account());
}

void containers_are_bound_to_their_account(void **)
{
    using vector = std::vector<int, zmalloc_account_allocator<int>>;
    const accounts both;
    const std::size_t expected = both.a != nullptr ? 1000 * sizeof(int) : 0;
    {
        const zmalloc_account_scope scope(both.b);
        vector in_a(1000, 1, zmalloc_account_allocator<int>(both.a));
        assert_true(used_in(both.a) >= expected && used_in(both.b) == 0);
        vector in_b{zmalloc_account_allocator<int>(both.b)};
        in_b = in_a; // a copy is in its own
        assert_true(used_in(both.b) >= expected);
        vector moved(std::move(in_a));
        moved.resize(3000);
        assert_true(used_in(both.a) >= 3 * expected);
        std::swap(moved, in_b);
        moved = vector(zmalloc_account_allocator<int>(both.a));
        assert_true(used_in(both.b) == 0);
        vector in_none(1000, 1, zmalloc_account_allocator<int>(nullptr));
        assert_true(used_in(both.b) == 0);
        assert_true(zmalloc_account_allocator<int>(both.a) == zmalloc_account_allocator<char>(both.b));
        assert_false(zmalloc_account_allocator<int>(both.a) != zmalloc_account_allocator<char>(both.b));
        auto object = std::allocate_shared<std::vector<int>>(zmalloc_account_allocator<int>(both.b));
        assert_true(both.a == nullptr || used_in(both.b) > 0);
    }
    assert_true(used_in(both.a) == 0 && used_in(both.b) == 0);
}

#ifdef ZMALLOC_HOOKS_MEMORY_RESOURCE

void resources_are_bound_to_their_account(void **)
{
    const accounts both;
    {
        zmalloc_account_resource resource(both.a), other(both.a);
        std::pmr::vector<int> numbers(1000, 1, &resource);
        assert_true(both.a == nullptr || used_in(both.a) >= 1000 * sizeof(int));
        assert_true(resource == resource && resource != other && resource != *zmalloc_resource());
    }
    assert_true(used_in(both.a) == 0);
}

#endif

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(containers_are_counted_and_come_back_to_the_start),
        cmocka_unit_test(moved_copied_and_swapped_containers_free_what_they_have),
        cmocka_unit_test(shared_objects_are_counted_with_their_control_block),
        cmocka_unit_test(types_have_their_alignment),
        cmocka_unit_test(no_elements_are_a_block_too),
        cmocka_unit_test(one_allocator_frees_what_another_allocated),
        cmocka_unit_test(a_failed_insertion_leaves_the_container_as_it_was),
        cmocka_unit_test(a_number_of_elements_that_overflows_is_told_from_want_of_memory),
        cmocka_unit_test(the_reclaim_handler_is_asked_first),
        cmocka_unit_test(a_scope_ends_where_it_began),
        cmocka_unit_test(containers_are_bound_to_their_account),
#if __cplusplus >= 201703L
        cmocka_unit_test(containers_of_the_resource_are_counted),
        cmocka_unit_test(other_resources_may_stand_on_it),
        cmocka_unit_test(the_resource_aligns),
        cmocka_unit_test(there_is_one_resource),
        cmocka_unit_test(resources_are_bound_to_their_account),
        cmocka_unit_test(a_failed_insertion_leaves_the_resources_container_as_it_was),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

/* Lua: a script that makes tables, strings, closures and coroutines. */

#include "hooks.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "zmalloc_hooks.h"

static const char script[] = "local words = {}\n"
                             "local generator = coroutine.wrap(function()\n"
                             "    for i = 1, 500 do coroutine.yield(('word %d'):format(i * 7919 % 500)) end\n"
                             "end)\n"
                             "for i = 1, 500 do words[i] = generator() end\n"
                             "table.sort(words)\n"
                             "local text = table.concat(words, ',')\n"
                             "local lengths = setmetatable({}, {__index = function() return 0 end})\n"
                             "text:gsub('%d+', function(n) lengths[#n] = lengths[#n] + 1 end)\n"
                             "words = nil\n"
                             "collectgarbage()\n"
                             "return #text, lengths[1], lengths[2], lengths[3]\n";

/* Inside a protected call: outside of one, a failure calls the panic function and then abort(). */
static int run_script(lua_State *state)
{
    static const lua_Integer results[] = {4389, 10, 90, 400};
    luaL_openlibs(state);
    if (luaL_loadstring(state, script) != LUA_OK)
        return lua_error(state);
    lua_call(state, 0, LENGTH(results));
    for (int i = 0; i < (int)LENGTH(results); i++)
        expect(lua_tointeger(state, i - (int)LENGTH(results)) == results[i]);
    return 0;
}

static int run_in_a_new_state(void)
{
    lua_State *state = lua_newstate(zmalloc_hook_lua(), NULL);
    if (state == NULL)
        return -1;
    lua_pushcfunction(state, run_script);
    int status = lua_pcall(state, 0, 0, 0);
    expect(status == LUA_OK || status == LUA_ERRMEM);
    lua_close(state);
    return status == LUA_OK ? 0 : -1;
}

static size_t used_in(struct zmalloc_account *account)
{
    struct zmalloc_account_stats now = {.struct_size = sizeof now};
    return zmalloc_get_account_stats(account, &now) == 0 ? now.used : SIZE_MAX;
}

/* Of two states each is told apart, and the one that is capped fails alone; the program's own memory is in neither. */
static void a_state_is_capped_and_told_apart(void **state)
{
    (void)state;
    if (!ZMALLOC_TEST_PREFIX)
        skip();
    struct zmalloc_account *scripts = zmalloc_account_create("scripts", NULL);
    struct zmalloc_account *accounts[] = {zmalloc_account_create("capped", scripts),
                                          zmalloc_account_create("free", scripts)};
    lua_State *states[LENGTH(accounts)];
    assert_int_equal(zmalloc_set_account_limit(accounts[0], 60000), 0);
    size_t before = zmalloc_used_memory();
    for (size_t i = 0; i < LENGTH(accounts); i++) {
        states[i] = lua_newstate(zmalloc_hook_lua(), accounts[i]);
        assert_non_null(states[i]);
        lua_pushcfunction(states[i], run_script);
        assert_int_equal(lua_pcall(states[i], 0, 0, 0), i == 0 ? LUA_ERRMEM : LUA_OK);
    }
    void *p = zmalloc(5000);
    assert_true(used_in(accounts[0]) > 0 && used_in(accounts[0]) <= 60000);
    assert_true(used_in(accounts[1]) > 0);
    assert_int_equal(used_in(scripts), used_in(accounts[0]) + used_in(accounts[1]));
    assert_int_equal(zmalloc_used_memory(), before + used_in(scripts) + zmalloc_size(p));
    zfree(p);
    for (size_t i = 0; i < LENGTH(accounts); i++) {
        lua_close(states[i]);
        assert_int_equal(zmalloc_account_remove(accounts[i]), 0);
    }
    assert_int_equal(zmalloc_account_remove(scripts), 0);
    assert_int_equal(zmalloc_used_memory(), before);
}

int main(void)
{
    static struct hooked_library lua = {.name = LUA_RELEASE, .work = run_in_a_new_state};
    const struct CMUnitTest tests[] = {library_tests(&lua), cmocka_unit_test(a_state_is_capped_and_told_apart)};
    return cmocka_run_group_tests_name(LUA_RELEASE, tests, NULL, NULL);
}

/* OpenSSL: a TLS handshake and an exchange with itself, by a certificate that it has made. */

#include "hooks.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "zmalloc_hooks.h"

#define LOAD 100000

struct exchange {
    EVP_PKEY *key;
    X509 *certificate;
    SSL_CTX *contexts[2];
    SSL *server, *client;
};

static int make_certificate(struct exchange *exchange)
{
    exchange->key = EVP_EC_gen("P-256");
    exchange->certificate = X509_new();
    if (exchange->key == NULL || exchange->certificate == NULL)
        return 0;
    X509 *certificate = exchange->certificate;
    X509_NAME *name = X509_get_subject_name(certificate);
    return X509_set_version(certificate, X509_VERSION_3) && ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1) &&
           X509_gmtime_adj(X509_getm_notBefore(certificate), -3600) != NULL &&
           X509_gmtime_adj(X509_getm_notAfter(certificate), 3600) != NULL &&
           X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0) &&
           X509_set_issuer_name(certificate, name) && X509_set_pubkey(certificate, exchange->key) &&
           X509_sign(certificate, exchange->key, EVP_sha256()) > 0;
}

/* The client trusts this certificate and no other. */
static int make_ends(struct exchange *exchange)
{
    SSL_CTX *serving = exchange->contexts[0] = SSL_CTX_new(TLS_server_method());
    SSL_CTX *asking = exchange->contexts[1] = SSL_CTX_new(TLS_client_method());
    if (serving == NULL || asking == NULL || SSL_CTX_use_certificate(serving, exchange->certificate) != 1 ||
        SSL_CTX_use_PrivateKey(serving, exchange->key) != 1 ||
        X509_STORE_add_cert(SSL_CTX_get_cert_store(asking), exchange->certificate) != 1)
        return 0;
    SSL_CTX_set_verify(asking, SSL_VERIFY_PEER, NULL);
    exchange->server = SSL_new(serving);
    exchange->client = SSL_new(asking);
    BIO *pair[2] = {NULL, NULL};
    if (exchange->server == NULL || exchange->client == NULL || BIO_new_bio_pair(&pair[0], 0, &pair[1], 0) != 1)
        return 0;
    SSL_set_bio(exchange->server, pair[0], pair[0]);
    SSL_set_bio(exchange->client, pair[1], pair[1]);
    SSL_set_accept_state(exchange->server);
    SSL_set_connect_state(exchange->client);
    return 1;
}

/* Whether the end of the connection waits for the other one. */
static int is_waiting(SSL *ssl, int result)
{
    int error = SSL_get_error(ssl, result);
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
}

static int shake_hands(struct exchange *exchange)
{
    int served = 0, asked = 0;
    for (int turn = 0; turn < 100 && !(served == 1 && asked == 1); turn++) {
        asked = SSL_do_handshake(exchange->client);
        if (asked != 1 && !is_waiting(exchange->client, asked))
            return 0;
        served = SSL_do_handshake(exchange->server);
        if (served != 1 && !is_waiting(exchange->server, served))
            return 0;
    }
    return served == 1 && asked == 1;
}

static int send_load(struct exchange *exchange)
{
    static const char sent[LOAD] = {'z'};
    static char received[LOAD];
    size_t in = 0, out = 0;
    for (int turn = 0; turn < 1000 && out < LOAD; turn++) {
        int n = SSL_write(exchange->client, sent + in, (int)(in + 1000 < LOAD ? 1000 : LOAD - in));
        if (in < LOAD && n <= 0 && !is_waiting(exchange->client, n))
            return 0;
        in += in < LOAD && n > 0 ? (size_t)n : 0;
        n = SSL_read(exchange->server, received + out, (int)(LOAD - out));
        if (n <= 0 && !is_waiting(exchange->server, n))
            return 0;
        out += n > 0 ? (size_t)n : 0;
    }
    expect(out < LOAD || memcmp(sent, received, LOAD) == 0);
    return out == LOAD;
}

static int exchange_by_tls(void)
{
    struct exchange exchange = {0};
    int done = make_certificate(&exchange) && make_ends(&exchange) && shake_hands(&exchange) && send_load(&exchange);
    SSL_free(exchange.server);
    SSL_free(exchange.client);
    SSL_CTX_free(exchange.contexts[0]);
    SSL_CTX_free(exchange.contexts[1]);
    X509_free(exchange.certificate);
    EVP_PKEY_free(exchange.key);
    return done ? 0 : -1;
}

static int exchange_and_clean_up(void)
{
    expect(zmalloc_hook_openssl() == 0);
    int result = exchange_by_tls();
    OPENSSL_cleanup();
    return result;
}

static int hook_too_late(void *ctx)
{
    (void)ctx;
    OPENSSL_free(OPENSSL_malloc(1));
    expect(zmalloc_hook_openssl() == EBUSY);
    expect(exchange_by_tls() == 0);
    expect(zmalloc_used_memory() == 0);
    return 0;
}

static void it_is_refused_after_the_first_allocation(void **state)
{
    (void)state;
    struct child_end end = run_in_child(hook_too_late, NULL);
    if (exited_with(&end) != 0)
        fail_msg("%s", end.text);
}

static int ask_for_no_bytes(void *ctx)
{
    (void)ctx;
    expect(zmalloc_hook_openssl() == 0);
    expect(OPENSSL_malloc(0) == NULL);
    expect(OPENSSL_realloc(NULL, 0) == NULL);
    void *p = OPENSSL_malloc(1);
    expect(p != NULL && zmalloc_used_memory() == zmalloc_size(p));
    expect(OPENSSL_realloc(p, 0) == NULL);
    expect(zmalloc_used_memory() == 0);
    return 0;
}

static void no_bytes_are_no_block(void **state)
{
    (void)state;
    struct child_end end = run_in_child(ask_for_no_bytes, NULL);
    if (exited_with(&end) != 0)
        fail_msg("%s", end.text);
}

static void check_use_after_all_others(void) { expect(zmalloc_used_memory() == 0); }

static int leave_the_cleanup_to_exit(void *ctx)
{
    (void)ctx;
    expect(atexit(check_use_after_all_others) == 0);
    expect(zmalloc_hook_openssl() == 0);
    expect(exchange_by_tls() == 0);
    expect(zmalloc_used_memory() > 0);
    exit(0);
}

static void what_is_left_is_freed_at_exit(void **state)
{
    (void)state;
    struct child_end end = run_in_child(leave_the_cleanup_to_exit, NULL);
    if (exited_with(&end) != 0)
        fail_msg("%s", end.text);
}

int main(void)
{
    static struct hooked_library openssl = {
        .work = exchange_and_clean_up,
        .crashes = "3.0.22: when it fails to set itself up, EVP_KEYMGMT_fetch() takes a lock that is not there",
        .leaks = "3.0.22: a name that cannot be registered; the whole library context when OPENSSL_cleanup(), which "
                 "allocates, cannot",
    };
    openssl.name = OpenSSL_version(OPENSSL_VERSION);
    const struct CMUnitTest tests[] = {
        library_tests(&openssl),
        cmocka_unit_test(it_is_refused_after_the_first_allocation),
        cmocka_unit_test(no_bytes_are_no_block),
        cmocka_unit_test(what_is_left_is_freed_at_exit),
    };
    return cmocka_run_group_tests_name(openssl.name, tests, NULL, NULL);
}

/* A plugin of qemu-user that prints how many instructions were run, on standard error. What it needs of qemu's interface
   (docs/devel/tcg-plugins, version 1) is declared here, because Debian has no header of it. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

struct block;
enum operation { ADD };
typedef uint64_t identity;
void qemu_plugin_register_vcpu_tb_trans_cb(identity, void (*)(identity, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, enum operation, void *, uint64_t);
void qemu_plugin_register_atexit_cb(identity, void (*)(identity, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct block *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
static uint64_t count;

static void translated(identity id, struct block *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &count, qemu_plugin_tb_n_insns(block));
}

static void ended(identity id, void *nothing) { fprintf(stderr, "%" PRIu64 " instructions\n", count); }

__attribute__((visibility("default"))) int qemu_plugin_install(identity id, const void *about, int count_, char **text) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}

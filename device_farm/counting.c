/* A plugin of qemu's user-mode emulation that counts the instructions which are executed, and logs the count whenever
   the program makes a system call that does nothing else: lseek(-1, MARK, …), see arm64_counts.py.

   Declarations after qemu 7.2, docs/devel/tcg-plugins.rst, API version 1. It needs no C library. */

#include <stddef.h>
#include <stdint.h>

#define LSEEK 62 /* of AArch64 Linux */
#define MARK 0xED6E

typedef uint64_t plugin_id;
struct block;
typedef void (*translated_cb)(plugin_id, struct block *);
typedef void (*called_cb)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated_cb);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, called_cb);
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int operation, void *at, uint64_t operand);
size_t qemu_plugin_tb_n_insns(const struct block *);
void qemu_plugin_outs(const char *);

enum { ADD = 0 };

int qemu_plugin_version = 1;

static uint64_t executed;

static void translated(plugin_id id, struct block *block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &executed, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t file, uint64_t offset, uint64_t a, uint64_t b,
                   uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  if (number != LSEEK || (int32_t)file != -1 || offset != MARK) return;
  char line[sizeof "18446744073709551615\n"], *at = line + sizeof line;
  uint64_t left = executed;
  *--at = '\0';
  *--at = '\n';
  do *--at = (char)('0' + left % 10);
  while (left /= 10);
  qemu_plugin_outs(at);
}

int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}

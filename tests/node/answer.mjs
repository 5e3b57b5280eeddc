// transformers.js over a package: node answer.mjs FOLDER NAME MOST < questions.json > answers.json
//
// FOLDER/NAME is the package. A question is {text, image, ids, pixels, tiles, size}: `image` a PNG for its own processor;
// `ids` and `pixels` (a file of float32, [tiles, 3, size, size]) what Edgewright's own reader makes of the same. An
// answer is {prompt, ids, tiles, own, given}: what its processor makes of the question, and the greedy texts in at most
// MOST tokens, from its own inputs and from those that were given.
import { readFileSync } from "node:fs";

import { AutoModelForImageTextToText, AutoProcessor, RawImage, Tensor, env } from "@huggingface/transformers";

const [folder, name, most] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = folder;
const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name);

async function said(inputs) {
  const tokens = await model.generate({ ...inputs, do_sample: false, max_new_tokens: Number(most) });
  const after = tokens.slice(null, [inputs.input_ids.dims[1], null]);
  return processor.batch_decode(after, { skip_special_tokens: true })[0].trim();
}

function given({ ids, pixels, tiles, size }) {
  const bytes = readFileSync(pixels);
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  return {
    input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
    attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
    pixel_values: new Tensor("float32", values, [1, tiles, 3, size, size]),
    pixel_attention_mask: new Tensor("bool", new Uint8Array(tiles * size * size).fill(1), [1, tiles, size, size]),
  };
}

const answers = [];
for (const question of JSON.parse(readFileSync(0, "utf8"))) {
  const content = [{ type: "image" }, { type: "text", text: question.text }];
  const prompt = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
  const inputs = await processor(prompt, [await RawImage.read(question.image)]);
  answers.push({
    prompt,
    ids: Array.from(inputs.input_ids.data, Number),
    tiles: inputs.pixel_values.dims[1],
    own: await said(inputs),
    given: await said(given(question)),
  });
}
console.log(JSON.stringify(answers));

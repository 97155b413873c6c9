// What an application in JavaScript does with S3: driven by test_aws_sdk_js.py, prints what it saw as JSON.
import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import {
  DeleteObjectsCommand, GetObjectCommand, HeadObjectCommand, PutObjectCommand, S3Client,
  paginateListObjectsV2, waitUntilObjectExists,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";

const [endpoint, Bucket] = process.argv.slice(2);
const client = new S3Client({ endpoint, forcePathStyle: true });
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const saw = {};

for (let number = 0; number < 12; number++) {
  const Key = `many/${String(number).padStart(2, "0")}`;
  await client.send(new PutObjectCommand({ Bucket, Key, Body: `body ${number}`, Metadata: { number: `${number}` } }));
}
await waitUntilObjectExists({ client, maxWaitTime: 10 }, { Bucket, Key: "many/11" });
saw.pages = [];
for await (const page of paginateListObjectsV2({ client, pageSize: 5 }, { Bucket, Prefix: "many/" })) {
  saw.pages.push(page.Contents.map((item) => item.Key));
}

// A stream of unknown length, in parts.
const piece = Buffer.alloc(1 << 20, "abcdefg");
const source = Readable.from((function* () { for (let turn = 0; turn < 12; turn++) yield piece; })());
await new Upload({ client, params: { Bucket, Key: "stream", Body: source }, partSize: 5 << 20 }).done();
const whole = await client.send(new GetObjectCommand({ Bucket, Key: "stream" }));
saw.stream = sha256(await whole.Body.transformToByteArray());
const range = await client.send(new GetObjectCommand({ Bucket, Key: "stream", Range: "bytes=5242870-5242889" }));
saw.range = await range.Body.transformToString();

const head = await client.send(new HeadObjectCommand({ Bucket, Key: "many/03" }));
saw.metadata = head.Metadata;
try {
  await client.send(new PutObjectCommand({ Bucket, Key: "many/03", Body: "x", IfNoneMatch: "*" }));
} catch (error) {
  saw.refused = [error.name, error.$metadata.httpStatusCode];
}
try {
  await client.send(new GetObjectCommand({ Bucket, Key: "none" }));
} catch (error) {
  saw.missing = [error.name, error.$metadata.httpStatusCode];
}

const put = await getSignedUrl(client, new PutObjectCommand({ Bucket, Key: "signed" }), { expiresIn: 60 });
saw.signedPut = (await fetch(put, { method: "PUT", body: "signed" })).status;
const get = await getSignedUrl(client, new GetObjectCommand({ Bucket, Key: "signed" }), { expiresIn: 60 });
saw.signedGet = await (await fetch(get)).text();

const Objects = saw.pages.flat().map((Key) => ({ Key }));
saw.deleted = (await client.send(new DeleteObjectsCommand({ Bucket, Delete: { Objects } }))).Deleted.length;
console.log(JSON.stringify(saw));

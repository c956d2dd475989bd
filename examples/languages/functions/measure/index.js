// Says how many words a file has that was put into the bucket.
const fs = require("node:fs");
const path = require("node:path");

exports.handler = async (event) => {
  for (const { s3 } of event.Records) {
    const key = decodeURIComponent(s3.object.key.replaceAll("+", " "));
    const text = fs.readFileSync(path.join(process.env.LAMBDA_TASK_ROOT, "../../buckets", s3.bucket.name, key), "utf8");
    console.log(`${key}: ${text.split(/\s+/).filter(Boolean).length} words`);
  }
};
